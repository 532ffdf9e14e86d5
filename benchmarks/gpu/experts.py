"""One token's experts in several ways, in graphs: which one belongs in the decode step?"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.report import Figure
from benchmarks.gpu.speed import interleaved
from benchmarks.gpu.subject import Subject, launcher_for, quartiles
from benchmarks.published_flow import blocks_of
from rollout.latency.hooks import Timeline
from rollout.molmoe.moe import ExpertFunction, SparseMoE, gathered_experts, grouped_experts
from rollout.molmoe.static_cache import Launcher, Part

PASSES = 10
"""Passes through the experts of all blocks in one measurement."""


def fused() -> ExpertFunction:
    """The Triton candidate; raises ImportError without Triton."""
    from benchmarks.gpu.fused_experts import fused_experts

    return fused_experts


def candidates(device: torch.device) -> dict[str, Callable[[], ExpertFunction]]:
    """Expert functions for one token, by name; Triton's needs a GPU."""
    found: dict[str, Callable[[], ExpertFunction]] = {
        "gathered, as in the decode step": lambda: gathered_experts,
        "grouped": lambda: grouped_experts,
    }
    return found | {"fused in Triton": fused} if device.type == "cuda" else found


class AllBlocks:
    """The experts of every block, prepared with random inputs and choices.

    Args:
        subject: the measured model.
        experts: the way to compute them.
        top_k: experts per token.
    """

    def __init__(self, subject: Subject, experts: ExpertFunction, top_k: int) -> None:
        config, device = subject.plan.config, subject.plan.device
        generator = torch.Generator().manual_seed(top_k)
        self.x_1D = torch.randn(1, config.d_model, generator=generator).to(
            device, subject.plan.dtype
        )
        self.weights_1k = torch.full((1, top_k), 1 / top_k).to(device, subject.plan.dtype)
        self.out_1D, self.experts = torch.zeros_like(self.x_1D), experts
        self.launcher: Launcher = launcher_for(device)
        parts: dict[Part, Callable[[], None]] = {}
        for index, block in enumerate(blocks_of(subject.model)):
            chosen_1k = torch.randperm(config.num_experts, generator=generator)[None, :top_k]
            parts[index, top_k] = self._part(block.mlp, chosen_1k.to(device))
        self.names = list(parts)
        self.launcher.prepare(parts)

    def _part(self, mlp: SparseMoE, chosen_1k: torch.Tensor) -> Callable[[], None]:
        def work() -> None:
            self.out_1D.copy_(
                self.experts(self.x_1D, self.weights_1k, chosen_1k, mlp.gate_up, mlp.down)
            )

        return work

    def run(self) -> None:
        """Launches the experts of all blocks, one after another."""
        for name in self.names:
            self.launcher.run(name)

    def ms_per_block(self, timeline: Timeline) -> float:
        """Milliseconds of one block, the mean over all."""
        with timeline.recorded() as stages, timeline.span("passes"):
            for _ in range(PASSES):
                self.run()
        return stages["passes"].ms / PASSES / len(self.names)


@torch.no_grad()
def experts(subject: Subject) -> list[Figure]:
    """Time per block by candidate and top-k, and how far each is from the first one's result."""
    plan, timeline, figures = subject.plan, subject.timeline(), []
    for top_k in (8, 4):
        made: dict[str, AllBlocks] = {}
        for name, load in candidates(plan.device).items():
            try:
                made[name] = AllBlocks(subject, load(), top_k)
                made[name].run()
            except Exception as error:  # a candidate that fails is a finding
                made.pop(name, None)
                what = f"experts, k {top_k}: {name} FAILS, {type(error).__name__}: {error}"
                figures.append(Figure(what=" ".join(what.split())[:400], value=0.0, unit="ms"))
        ways = {name: (lambda one=one: one.ms_per_block(timeline)) for name, one in made.items()}
        expected = next(iter(made.values())).out_1D.float()
        for name, times in interleaved(ways, plan.rounds).items():
            off = (made[name].out_1D.float() - expected).norm() / expected.norm()
            low, middle, high = quartiles(times)
            what = f"experts, k {top_k}: {name} (differs by {100 * off.item():.1f} %)"
            figures.append(Figure(what=what, value=middle, unit="ms/block", low=low, high=high))
    return figures

"""Times our MoE layer, mid-size and full-size, against two other implementations.

    python -m benchmarks.moe --sizes full --dtypes bfloat16 --tokens 1 64

The others are a plain loop over all experts, as in the published code, and transformers' OLMoE
block with each of its expert implementations. All run in one process, interleaved in random order
(a call that follows a large allocation is slower); the table shows medians with quartiles.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """One measurement.

    Attributes:
        quick: one row, to see within a minute that it runs.
        threads: number of threads.
        sizes: sizes of the layer.
        dtypes: dtypes of the weights.
        tokens: numbers of tokens.
        rounds: minimum number of runs of each implementation.
        seconds: minimum duration of a row.
    """

    quick: bool = False
    threads: int = 2
    sizes: tuple[Literal["mid", "full"], ...] = ("mid", "full")
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    tokens: tuple[int, ...] = (1, 64, 400, 1200)
    rounds: int = 5
    seconds: float = 10.0


QUICK = MoEConfig(
    quick=True, threads=1, sizes=("mid",), dtypes=("float32",), tokens=(1,), rounds=2, seconds=0.1
)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import functools
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from benchmarks.published_flow import PlainLoop
from rollout.molmoe import MolmoEConfig
from rollout.molmoe.moe import ExpertFunction, SparseMoE, grouped_experts, looped_experts

SIZES = {
    "mid": MolmoEConfig(d_model=512, n_heads=8, num_experts=64, expert_hidden=256),
    "full": MolmoEConfig(),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = ("looped", "grouped")
OTHERS = ("plain loop", "eager", "batched_mm", "grouped_mm")
LARGE_BYTES = 2**30
"""If batched_mm gathers more than this, it is timed only once, after all others."""


def olmoe(
    ours: SparseMoE, config: MolmoEConfig, top_k: int, implementation: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Transformers' OLMoE block on the same weights, without copying them."""
    settings = OlmoeConfig(
        hidden_size=config.d_model,
        intermediate_size=config.expert_hidden,
        num_experts=config.num_experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=False,
    )
    settings._experts_implementation = implementation
    with torch.device("meta"):
        block = OlmoeSparseMoeBlock(settings)
    block.gate.weight = torch.nn.Parameter(ours.gate.weight, requires_grad=False)
    block.experts.gate_up_proj = torch.nn.Parameter(ours.gate_up, requires_grad=False)
    block.experts.down_proj = torch.nn.Parameter(ours.down, requires_grad=False)
    return lambda x: block(x[None])[0]


def plain_copy(num_bytes: int) -> Callable[[], object]:
    """Copies this many bytes: those of the k experts' weights that decoding one token reads."""
    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def interleaved(
    ways: dict[str, Callable[[], object]], seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each implementation, interleaved until both limits are reached.

    Every implementation runs for at least `rounds` rounds, and all of them for at least `seconds`.
    """
    for call in ways.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    order, rng = list(ways.items()), random.Random(0)
    while time.perf_counter() < end or len(next(iter(times.values()))) < rounds:
        rng.shuffle(order)
        for name, call in order:
            times[name].append(once_ms(call))
    return times


def once_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


@torch.no_grad()
def main() -> int:
    """Measures, and prints one row per size, dtype, number of tokens and top-k."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(options.threads)
    table = Table(
        "size", "dtype", "tokens", "k", *OURS, *OTHERS, "ours / best other", "copy / ours"
    )
    for size in options.sizes:
        config = SIZES[size]
        for dtype_name in options.dtypes:
            dtype = DTYPES[dtype_name]
            layer = SparseMoE(config).requires_grad_(False)
            for weight in layer.parameters():
                torch.nn.init.normal_(weight, std=0.02)
            layer = layer.to(dtype)
            loop = PlainLoop(layer)
            for tokens in options.tokens:
                x_TD = torch.randn(tokens, config.d_model, dtype=dtype)
                for top_k in (4, 8):
                    cells = row(layer, loop, config, x_TD, top_k, options)
                    table.add_row(size, dtype_name, str(tokens), str(top_k), *cells)
            del layer, loop
    Console(width=220).print(table)
    print("medians in ms with quartiles; *: chosen by our rule; ratios: medians over the rounds;")
    print("copy: a plain copy of the number of bytes of the k experts' weights, at one token")
    return 0


def ways_of(
    layer: SparseMoE, loop: PlainLoop, config: MolmoEConfig, x_TD: torch.Tensor, top_k: int
) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """The implementations that work here, and those that are too large to be timed often."""

    def ours(function: ExpertFunction) -> Callable[[], object]:
        def call() -> object:
            probs = F.softmax(layer.gate(x_TD), dim=-1, dtype=torch.float32)
            weights, experts = probs.topk(top_k, dim=-1)
            return function(x_TD, weights.to(x_TD.dtype), experts, layer.gate_up, layer.down)

        return call

    ways: dict[str, Callable[[], object]] = {
        "looped": ours(looped_experts),
        "grouped": ours(grouped_experts),
        "plain loop": lambda: loop(x_TD, top_k),
    }
    expert_bytes = 3 * config.d_model * config.expert_hidden * x_TD.element_size()
    large: dict[str, Callable[[], object]] = {}
    for name in ("eager", "batched_mm", "grouped_mm"):
        call = functools.partial(olmoe(layer, config, top_k, name), x_TD)
        gathers = name == "batched_mm"  # a copy of k experts' weights for every token
        if gathers and len(x_TD) > 64:
            continue
        if gathers and len(x_TD) * top_k * expert_bytes > LARGE_BYTES:
            large[name] = call
            continue
        try:
            call()
        except (RuntimeError, ValueError, KeyError, NotImplementedError):
            continue
        ways[name] = call
    if len(x_TD) == 1:
        ways["copy"] = plain_copy(top_k * expert_bytes)
    return ways, large


def row(
    layer: SparseMoE,
    loop: PlainLoop,
    config: MolmoEConfig,
    x_TD: torch.Tensor,
    top_k: int,
    options: MoEConfig,
) -> list[str]:
    """Cells of one row of the table; a dash for an implementation that fails."""
    ways, large = ways_of(layer, loop, config, x_TD, top_k)
    times = interleaved(ways, options.seconds, options.rounds)
    rule = layer.experts_for(x_TD, top_k)
    chosen = np.array(times["looped" if rule is looped_experts else "grouped"])
    medians = {name: once_ms(call) for name, call in large.items()}
    cells = []
    for name in (*OURS, *OTHERS):
        if name not in times:
            cells.append(f"{medians[name]:.0f}, once" if name in large else "-")
            continue
        low, middle, high = statistics.quantiles(times[name], n=4)
        mark = "* " if times[name] == list(chosen) else ""
        cells.append(f"{mark}{middle:.2f} [{low:.2f} {high:.2f}]")
    others = [np.array(times[name]) for name in OTHERS if name in times]
    cells.append(f"{max(np.median(chosen / other) for other in others):.2f}")
    copy = times.get("copy")
    cells.append("" if copy is None else f"{np.median(np.array(copy) / chosen):.2f}")
    return cells


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

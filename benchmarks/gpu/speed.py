"""Times of decode, prefill, hooks, and how well they repeat."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import product
from typing import TypeVar

import numpy as np
import torch

from benchmarks.gpu.report import Figure
from benchmarks.gpu.subject import Subject, knobs, quartiles
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, NUM_BLOCKS, TOP_KS, Execution, Knobs, Tier
from rollout.executor import MolmoEExecutor
from rollout.latency.hooks import Timeline, block_modules, module_hooks
from rollout.prefix import Prefix

MIDDLE_KNOBS = Knobs(tier=Tier.MEDIUM, position=2, top_k=6, num_blocks=14)


def token_ms(execution: Execution) -> float:
    """Milliseconds per decode step of an answer; NaN if it has only one token."""
    steps = [ms for name, ms in execution.stages_ms.items() if name.startswith("decode")]
    return sum(steps) / len(steps) if steps else float("nan")


Measured = TypeVar("Measured")


def interleaved(
    ways: Mapping[str, Callable[[], Measured]], rounds: int, seed: int = 0
) -> dict[str, list[Measured]]:
    """What each way returns, all of them in random order in every round after a first one."""
    values: dict[str, list[Measured]] = {name: [] for name in ways}
    order, rng = list(ways), random.Random(seed)
    for name in order:
        ways[name]()
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            values[name].append(ways[name]())
    return values


def _figure(what: str, values: list[float], unit: str, at_most: float | None = None) -> Figure:
    low, middle, high = quartiles(values)
    return Figure(what=what, value=middle, unit=unit, low=low, high=high, at_most=at_most)


def _decoding(
    executor: MolmoEExecutor, prefix: Prefix, top_k: int, num_blocks: int
) -> Callable[[], float]:
    return lambda: token_ms(executor.advance(prefix, knobs(top_k, num_blocks)))


def decode(subject: Subject) -> list[Figure]:
    """Milliseconds per token by top-k and number of blocks."""
    plan, prefix, goals = subject.plan, subject.prefix(Tier.HIGH), subject.plan.goals
    name = subject.fast.runtime.name
    ways = {
        (k, blocks): _decoding(subject.fast, prefix, k, blocks)
        for k, blocks in product(TOP_KS, NUM_BLOCKS[::2])
    }
    times = interleaved({str(key): way for key, way in ways.items()}, plan.rounds)
    figures = [
        _figure(
            f"{name}: k {k}, {blocks} blocks",
            times[str((k, blocks))],
            "ms/token",
            goals.decode_ms if goals and (k, blocks) == (8, 16) else None,
        )
        for k, blocks in ways
    ]
    ratio = np.array(times[str((4, 16))]) / np.array(times[str((8, 16))])
    limit = goals.top_k_ratio if goals else None
    return [*figures, _figure(f"{name}: k 4 over k 8, 16 blocks", list(ratio), "", limit)]


def decode_without_graphs(subject: Subject) -> list[Figure]:
    """The same tokens without graphs: plain calls of the fixed shape, and the growing cache."""
    prefix = subject.prefix(Tier.HIGH)
    ways = {
        f"{name}: k {k}, {blocks} blocks": _decoding(executor, prefix, k, blocks)
        for name, executor in (
            (f"{subject.fast.runtime.name}, again", subject.fast),
            ("plain calls of the fixed shape", subject.uncaptured),
            ("growing cache", subject.eager),
        )
        for k, blocks in ((8, 16), (4, 16), (4, 12))
    }
    times = interleaved(ways, subject.plan.eager_rounds)
    return [_figure(what, values, "ms/token") for what, values in times.items()]


def prefill(subject: Subject) -> list[Figure]:
    """Milliseconds up to the first token, by tier and stage."""
    goals, figures = subject.plan.goals, []
    for tier in Tier:
        runs, length = [], 0
        for _ in range(subject.plan.rounds + 1):
            prefix = subject.prefix(tier)
            execution = subject.fast.advance(prefix, knobs(8, 16, tier))
            runs.append(execution.stages_ms)
            length = len(prefix.inputs.token_ids)
        kinds = {"copy": "copy", "vision": "vision_", "projector": "projector", "embed": "embed"}
        kinds |= {"blocks": "block_", "head": "head"}
        sums = {
            kind: [
                sum((ms for n, ms in run.items() if n.startswith(start)), 0.0) for run in runs[1:]
            ]
            for kind, start in kinds.items()
        }
        whole = [sum(parts, 0.0) for parts in zip(*sums.values(), strict=True)]
        limit = goals.prefill_ms if goals and tier is Tier.HIGH else None
        name = f"{tier.name.lower()} tier, {length} tokens"
        figures.append(_figure(f"{name}: whole", whole, "ms", limit))
        figures += [_figure(f"{name}: {kind}", values, "ms") for kind, values in sums.items()]
    return figures


@torch.no_grad()
def hooks(subject: Subject) -> list[Figure]:
    """What the hooks add to a pass through all blocks, in pairs of opposite order."""
    model, prefix = subject.model, subject.prefix(Tier.HIGH)
    x_1TD, outer = prefix.hidden[0], subject.timeline()

    def plain() -> float:
        cache = model.new_cache(x_1TD.shape[1])
        with outer.recorded() as stages, outer.span("pass"):
            model.run_blocks(x_1TD, 0, model.config.n_layers, cache=cache)
        return stages["pass"].ms

    def hooked() -> float:
        inner = Timeline(outer.clock)
        with module_hooks(inner, block_modules(model)):
            return plain()

    rounds = 2 * subject.plan.rounds
    times = interleaved({"plain": plain, "hooked": hooked}, rounds)
    added = 100 * (np.array(times["hooked"]) / np.array(times["plain"]) - 1)
    goals = subject.plan.goals
    limit = goals.hooks_percent if goals else None
    return [_figure("hooks around every block of a prefill add", added.tolist(), "%", limit)]


def repeatability(subject: Subject) -> list[Figure]:
    """Coefficient of variation of whole episodes on one sample."""
    latencies: dict[Knobs, list[float]] = {
        chosen: [] for chosen in (CHEAPEST_KNOBS, MIDDLE_KNOBS, FULL_KNOBS)
    }
    for _ in range(subject.plan.repeats + 1):
        for chosen, values in latencies.items():
            prefix = subject.prefix(chosen.tier, chosen.position)
            values.append(subject.fast.advance(prefix, chosen).latency_ms)
    goals = subject.plan.goals
    limit = goals.variation_percent if goals else None
    figures = []
    for chosen, values in latencies.items():
        kept = np.array(values[1:])
        figures.append(_figure(f"{chosen}: latency", kept.tolist(), "ms"))
        figures.append(
            Figure(
                what=f"{chosen}: coefficient of variation",
                value=float(100 * kept.std() / kept.mean()),
                unit="%",
                at_most=limit,
            )
        )
    return figures

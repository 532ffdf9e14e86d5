"""Runs controller and lookup tables live and interleaved, a few samples at a time.

A probe between these turns measures how much slower the devices are than at the first measurement.

Shapes: S samples, K budgets, N samples of a probe, R measurements of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from envs.spec import FULL_KNOBS, Knobs
from launch.analysis.greedy_sweep import GreedySweep, greedy_sweep
from launch.cluster.fleet import RayFleet
from policy.config import PolicySetup
from rollout.actor import PublishedWeights
from rollout.latency.calibration import EndLatencies
from rollout.profiling.profile_table import ProfileTable

SAMPLES_A_TURN = 10
"""Samples per turn."""

REPEATS_A_TURN = 8
"""Repeated runs of one fixed configuration per turn, which show the noise of the clock."""

PROBE_SAMPLES = 4
"""Samples on which the cheapest and the full configuration are run between turns."""


def run_live(
    fleet: RayFleet, choices: dict[str, list[Knobs]], indices: range
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Runs lookup choices on test samples: scores and latencies [S, K], by lookup table."""
    distinct = tuple(sorted({knobs for chosen in choices.values() for knobs in chosen}))
    records = list(fleet.profile(distinct, "test", indices, "live lookups"))
    scores = np.array([[r.score for r in row] for row in records])
    latencies = np.array([[r.execution.latency_ms for r in row] for row in records])
    places = {name: [distinct.index(k) for k in chosen] for name, chosen in choices.items()}
    return {name: (scores[:, place], latencies[:, place]) for name, place in places.items()}


def joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenates pairs of scores and latencies."""
    scores, latencies = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(latencies)


def run_repeats(fleet: RayFleet) -> list[float]:
    """Repeated latencies in ms of one fixed configuration on one sample."""
    repeats = fleet.profile((FULL_KNOBS,), "test", [0] * REPEATS_A_TURN, "repeats")
    return [records[0].execution.latency_ms for records in repeats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Some samples, run by the controller and then by the lookup tables.

    Attributes:
        result: the controller's episodes.
        live: scores and latencies [S, K] of the lookup tables.
        repeats_ms: latencies of one fixed configuration on one sample.
        slowdown: present latencies of the devices relative to the first measurement.
    """

    result: GreedySweep
    live: dict[str, tuple[np.ndarray, np.ndarray]]
    repeats_ms: list[float]
    slowdown: float

    def without_drift(self) -> Turn:
        """The turn at the speed of the first measurement."""
        by = self.slowdown
        return Turn(
            result=replace(self.result, latencies_ms=self.result.latencies_ms / by),
            live={name: (scores, ms / by) for name, (scores, ms) in self.live.items()},
            repeats_ms=[ms / by for ms in self.repeats_ms],
            slowdown=1.0,
        )

    @staticmethod
    def joined(turns: Sequence[Turn]) -> Turn:
        """Concatenates turns."""
        names = turns[0].live
        return Turn(
            result=GreedySweep.joined([turn.result for turn in turns]),
            live={name: joined([turn.live[name] for turn in turns]) for name in names},
            repeats_ms=[ms for turn in turns for ms in turn.repeats_ms],
            slowdown=float(np.median([turn.slowdown for turn in turns])),
        )


def run_in_turns(
    fleet: RayFleet,
    setup: PolicySetup,
    weights: PublishedWeights,
    choices: dict[str, list[Knobs]],
    now: EndLatencies,
    budgets_ms: list[float],
    num_samples: int,
) -> list[Turn]:
    """Runs controller, lookup tables and repeats interleaved, so that drift affects all equally."""
    turns, before = [], slowdown(fleet, now)
    for first in range(0, num_samples, SAMPLES_A_TURN):
        indices = range(first, min(first + SAMPLES_A_TURN, num_samples))
        result = greedy_sweep(
            fleet,
            setup,
            weights,
            split="test",
            num_samples=len(indices),
            budgets_ms=budgets_ms,
            first_index=first,
        )
        live, repeats_ms = run_live(fleet, choices, indices), run_repeats(fleet)
        after = slowdown(fleet, now)
        turns.append(
            Turn(
                result=result,
                live=live,
                repeats_ms=repeats_ms,
                slowdown=(before * after) ** 0.5,
            )
        )
        before = after
    return turns


def slowdown(fleet: RayFleet, reference: EndLatencies) -> float:
    """Present latencies relative to the reference, median over the same samples."""
    probe_RN2 = EndLatencies.measure(fleet, PROBE_SAMPLES).latencies_RN2
    then_N2 = np.median(reference.latencies_RN2[:, :PROBE_SAMPLES], axis=0)
    return float(np.median(probe_RN2[:, : len(then_N2)] / then_N2))


def clock_floor(latencies_ms: Sequence[float]) -> dict[str, float]:
    """How often one fixed configuration on one sample exceeds its own 95th percentile.

    The percentile is taken over one half of the runs and the rate over the other: at a budget set
    to that percentile, no policy can do better than this rate. The halves alternate twice per turn,
    so that every actor contributes to both.
    """
    runs = np.array(latencies_ms)
    is_second = np.arange(len(runs)) // (REPEATS_A_TURN // 2) % 2 == 1
    first, second = runs[~is_second], runs[is_second]
    return {
        "coefficient_of_variation": float(runs.std() / runs.mean()),
        "p95_over_p50": float(np.quantile(runs, 0.95) / np.median(runs)),
        "exceeds_own_p95": float((second > np.quantile(first, 0.95)).mean()),
    }


def clock_factor(
    live: dict[str, tuple[np.ndarray, np.ndarray]],
    columns: dict[str, list[int]],
    test: ProfileTable,
) -> float:
    """The ratio of live latencies to those of the test table, median over the lookup choices.

    `columns` are the lookup tables' columns of the test table at each budget.
    """
    ratios = [
        latencies / test.latencies_ms[:, columns[name]] for name, (_, latencies) in live.items()
    ]
    return float(np.median(np.stack(ratios)))

"""Controller and lookup tables on the running model, a few samples each in turn.

Between turns a probe tells how fast the devices have become since they were first measured.

Shapes: S samples, K budgets, N samples of a probe, R times that it measures each.
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
"""Samples after which controller, lookup tables and the clock's repeats take turns."""

REPEATS_A_TURN = 8
"""Runs of one fixed configuration in each turn."""

PROBE_SAMPLES = 4
"""Samples whose cheapest and full configuration are run between turns."""


def run_live(
    fleet: RayFleet, choices: dict[str, list[Knobs]], indices: range
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores and latencies [S, K] of configurations by budget, run on these test samples."""
    distinct = tuple(sorted({knobs for chosen in choices.values() for knobs in chosen}))
    records = list(fleet.profile(distinct, "test", indices, "live lookups"))
    scores = np.array([[r.score for r in row] for row in records])
    latencies = np.array([[r.execution.latency_ms for r in row] for row in records])
    places = {name: [distinct.index(k) for k in chosen] for name, chosen in choices.items()}
    return {name: (scores[:, place], latencies[:, place]) for name, place in places.items()}


def joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """One pair of scores and latencies of those of many samples."""
    scores, latencies = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(latencies)


def run_repeats(fleet: RayFleet) -> list[float]:
    """Latencies in ms of one fixed configuration on one sample."""
    repeats = fleet.profile((FULL_KNOBS,), "test", [0] * REPEATS_A_TURN, "repeats")
    return [records[0].execution.latency_ms for records in repeats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Some samples by the controller and by the lookup tables, one after the other.

    Attributes:
        result: the controller's episodes.
        live: scores and latencies [S, K] of the lookup tables.
        repeats_ms: latencies of one fixed configuration on one sample.
        slowness: the devices' latencies over those of the first measurement.
    """

    result: GreedySweep
    live: dict[str, tuple[np.ndarray, np.ndarray]]
    repeats_ms: list[float]
    slowness: float

    def steadied(self) -> Turn:
        """As it would have been at the speed of the first measurement."""
        by = self.slowness
        return Turn(
            result=replace(self.result, latencies_ms=self.result.latencies_ms / by),
            live={name: (scores, ms / by) for name, (scores, ms) in self.live.items()},
            repeats_ms=[ms / by for ms in self.repeats_ms],
            slowness=1.0,
        )

    @staticmethod
    def joined(turns: Sequence[Turn]) -> Turn:
        """All turns as one."""
        names = turns[0].live
        return Turn(
            result=GreedySweep.joined([turn.result for turn in turns]),
            live={name: joined([turn.live[name] for turn in turns]) for name in names},
            repeats_ms=[ms for turn in turns for ms in turn.repeats_ms],
            slowness=float(np.median([turn.slowness for turn in turns])),
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
    """Controller, lookup choices and repeats, some samples each in turn: drift hits all alike."""
    turns, before = [], slowness(fleet, now)
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
        after = slowness(fleet, now)
        turns.append(
            Turn(
                result=result,
                live=live,
                repeats_ms=repeats_ms,
                slowness=(before * after) ** 0.5,
            )
        )
        before = after
    return turns


def slowness(fleet: RayFleet, reference: EndLatencies) -> float:
    """What the devices take now over what they took then, on the same samples."""
    probe_RN2 = EndLatencies.measure(fleet, PROBE_SAMPLES).latencies_RN2
    then_N2 = np.median(reference.latencies_RN2[:, :PROBE_SAMPLES], axis=0)
    return float(np.median(probe_RN2[:, : len(then_N2)] / then_N2))


def clock_floor(latencies_ms: Sequence[float]) -> dict[str, float]:
    """How often one fixed configuration on one sample exceeds its own 95th percentile.

    The percentile is of one half of the runs, the rate of the other half: a perfect policy could
    do no better than this rate at a budget set to that percentile. The halves alternate twice a
    turn, so that every actor has a part in both.
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
    """How much slower the sweep ran than the test table: median over what both have measured.

    `columns` are the test table's, for the same samples and budgets as the latencies in `live`.
    """
    ratios = [
        latencies / test.latencies_ms[:, columns[name]] for name, (_, latencies) in live.items()
    ]
    return float(np.median(np.stack(ratios)))

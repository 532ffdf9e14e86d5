"""Runs controller and rivals live and interleaved, a few samples at a time.

Shapes: S samples, K budgets, R repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.spec import Knobs
from launch.analysis.greedy_sweep import GreedySweep, greedy_sweep, usable
from launch.analysis.knob_table import KnobTable
from launch.analysis.outcomes import Outcome, outcome
from policy.config import PolicySetup
from rollout.fleet import MeasuringFleet
from rollout.profiling.profile_table import ProfileTable

SAMPLES_A_TURN = 10
"""Number of samples per turn."""

Episodes = tuple[np.ndarray, np.ndarray]
"""Scores and latencies in calibrated ms, [S, K] each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The controller and its rivals on the same samples and the same devices.

    Attributes:
        result: the controller's episodes.
        rivals: scores and latencies of each rival.
    """

    result: GreedySweep
    rivals: Mapping[str, Episodes]

    def outcomes(self) -> dict[str, Outcome]:
        """The outcome of the controller and of each rival, by name."""
        ours = (self.result.scores, self.result.latencies_ms)
        return {
            name: outcome(scores, latencies, self.result.budgets_ms, self.result.feasible)
            for name, (scores, latencies) in {"controller": ours, **self.rivals}.items()
        }

    def rows(self, rows: Sequence[int]) -> Live:
        """Some of the samples."""
        rivals = {name: (s[list(rows)], ms[list(rows)]) for name, (s, ms) in self.rivals.items()}
        return Live(result=self.result.rows(rows), rivals=rivals)

    def on_the_samples_of(self, table: ProfileTable) -> tuple[Live, ProfileTable]:
        """Both on the samples that both have, joined by their ids, in the order they ran.

        Raises:
            ValueError: they have no sample in common.
        """
        row_of = {sample_id: row for row, sample_id in enumerate(table.sample_ids)}
        common = [row for row, name in enumerate(self.result.sample_ids) if name in row_of]
        if not common:
            raise ValueError(
                f"no sample of the profile ran live ({table.sample_ids[0]} ... in the profile, "
                f"{self.result.sample_ids[0]} ... live): profile the data that is evaluated"
            )
        ran = [self.result.sample_ids[row] for row in common]
        return self.rows(common), table.rows([row_of[name] for name in ran])

    @staticmethod
    def joined(turns: Sequence[Live]) -> Live:
        """Concatenates turns."""
        names = turns[0].rivals
        return Live(
            result=GreedySweep.joined([turn.result for turn in turns]),
            rivals={name: _joined([turn.rivals[name] for turn in turns]) for name in names},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a controller is compared with.

    Attributes:
        profile: of the validation split, in the run's milliseconds; rivals are chosen on it.
        fleet: runs the rivals' configurations.
    """

    profile: ProfileTable
    fleet: MeasuringFleet[Any]


def run_live(
    fleet: MeasuringFleet[Any],
    setup: PolicySetup,
    weights: Any,
    rivals: Mapping[str, KnobTable],
    indices: Sequence[int],
    budgets_ms: np.ndarray,
) -> Live:
    """Runs samples of the test split by their places."""
    turns = []
    for first in range(0, len(indices), SAMPLES_A_TURN):
        result = greedy_sweep(
            fleet,
            setup,
            weights,
            split="test",
            indices=indices[first : first + SAMPLES_A_TURN],
            budgets_ms=budgets_ms.tolist(),
        )
        turns.append(_with_rivals(fleet, setup, rivals, result))
    return Live.joined(turns)


def _with_rivals(
    fleet: MeasuringFleet[Any],
    setup: PolicySetup,
    rivals: Mapping[str, KnobTable],
    ours: GreedySweep,
) -> Live:
    """Runs the configurations that any rival chose for its task on each of our samples.

    They are the samples that ran, not those requested: unusable ones were replaced. A sample on
    which a rival cannot be measured is left out for all policies.
    """
    plan = []
    for index, task in zip(ours.indices, ours.tasks, strict=True):
        chosen = {rival.at(ms, task) for rival in rivals.values() for ms in ours.budgets_ms}
        plan.append((index, tuple(sorted(chosen))))
    found: dict[str, list[list[Any]]] = {name: [] for name in rivals}
    results = list(fleet.profile_each(plan, "test", "episodes of the rivals", setup.calibration))
    is_whole = [len(records) == len(p[1]) for p, records in zip(plan, results, strict=True)]
    rows = usable(ours.sample_ids, is_whole)
    for (_, chosen), task, records in ((plan[r], ours.tasks[r], results[r]) for r in rows):
        by_knobs: dict[Knobs, Any] = dict(zip(chosen, records, strict=True))
        for name, rival in rivals.items():
            found[name].append([by_knobs[rival.at(ms, task)] for ms in ours.budgets_ms])
    measured = {
        name: (
            np.array([[record.score for record in row] for row in episodes]),
            np.array([[record.calibrated_ms for record in row] for row in episodes]),
        )
        for name, episodes in found.items()
    }
    return Live(result=ours.rows(rows), rivals=measured)


def _joined(parts: Sequence[Episodes]) -> Episodes:
    scores, latencies = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(latencies)


def table_factor(live: Live, rivals: Mapping[str, KnobTable], test: ProfileTable) -> float:
    """The ratio of live latencies to those of the test table, median over the rivals' choices."""
    ratios, budgets_ms = [], live.result.budgets_ms
    column_of = {knobs: column for column, knobs in enumerate(test.configurations)}
    for name, (_, latencies_SK) in live.rivals.items():
        chosen = [[rivals[name].at(ms, task) for ms in budgets_ms] for task in test.tasks]
        columns_SK = np.array([[column_of[knobs] for knobs in row] for row in chosen])
        ratios.append(latencies_SK / np.take_along_axis(test.latencies_ms, columns_SK, 1))
    return float(np.median(np.stack(ratios)))

"""Runs controller and rivals live and interleaved, a few samples at a time, at several prices.

Shapes: S samples, K budgets, R repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.prices import FREE
from envs.spec import Knobs
from launch.analysis.greedy_sweep import GreedySweep, greedy_sweeps, usable
from launch.analysis.knob_table import KnobTable
from launch.analysis.outcomes import Outcome, outcome
from launch.analysis.tradeoff import Curve, curves_of_outcomes
from launch.cluster.progress import counted
from policy.config import PolicySetup
from rollout.fleet import MeasuringFleet
from rollout.profiling.profile_table import ProfileTable
from rollout.profiling.records import ProfileRecord

SAMPLES_A_TURN = 10
"""Number of samples per turn."""

Episodes = tuple[np.ndarray, np.ndarray]
"""Scores and latencies in calibrated ms, [S, K] each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The controller and its rivals at one price, on the same samples and the same devices.

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

    def to_json(self) -> dict[str, Any]:
        """The controller's episodes and the rivals' outcomes, as plain JSON values."""
        found = self.outcomes()
        return {**self.result.to_json(), "rivals": {n: found[n].to_json() for n in self.rivals}}

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
    *,
    indices: Sequence[int],
    budgets_ms: np.ndarray,
    prices: Sequence[float] = (FREE,),
) -> dict[float, Live]:
    """Runs samples of the test split by their places; what ran at each price."""
    turns = []
    starts = range(0, len(indices), SAMPLES_A_TURN)
    for first in counted(starts, f"turns of {SAMPLES_A_TURN} test samples"):
        sweeps = greedy_sweeps(
            fleet,
            setup,
            weights,
            split="test",
            indices=indices[first : first + SAMPLES_A_TURN],
            budgets_ms=budgets_ms.tolist(),
            prices=prices,
        )
        turns.append(_with_rivals(fleet, setup, rivals, sweeps))
    return {
        price: Live.joined([turn[number] for turn in turns]) for number, price in enumerate(prices)
    }


def _with_rivals(
    fleet: MeasuringFleet[Any],
    setup: PolicySetup,
    rivals: Mapping[str, KnobTable],
    sweeps: Sequence[GreedySweep],
) -> list[Live]:
    """Runs the configurations that any rival chose for its task on each of our samples.

    They are the samples that ran, not those requested: unusable ones were replaced. A sample on
    which a rival cannot be measured is left out for all policies.
    """
    ours, prices = sweeps[0], [sweep.price for sweep in sweeps]
    chosen_by_task = {
        task: tuple(
            sorted(
                {
                    rival.at(ms, task, price)
                    for rival in rivals.values()
                    for ms in ours.budgets_ms
                    for price in prices
                }
            )
        )
        for task in set(ours.tasks)
    }
    plan = [(i, chosen_by_task[task]) for i, task in zip(ours.indices, ours.tasks, strict=True)]
    results = list(fleet.profile_each(plan, "test", "episodes of the rivals", setup.calibration))
    is_whole = [len(records) == len(p[1]) for p, records in zip(plan, results, strict=True)]
    rows = usable(ours.sample_ids, is_whole)
    records_of = [dict(zip(plan[row][1], results[row], strict=True)) for row in rows]
    found = []
    for sweep in sweeps:
        kept = sweep.rows(rows)
        episodes = {name: _episodes(rival, kept, records_of) for name, rival in rivals.items()}
        found.append(Live(result=kept, rivals=episodes))
    return found


def _episodes(
    rival: KnobTable, sweep: GreedySweep, records_of: Sequence[Mapping[Knobs, ProfileRecord]]
) -> Episodes:
    """What a rival's choices achieved at the budgets and the price of a sweep."""
    chosen = [
        [by_knobs[rival.at(ms, task, sweep.price)] for ms in sweep.budgets_ms]
        for task, by_knobs in zip(sweep.tasks, records_of, strict=True)
    ]
    return (
        np.array([[record.score for record in row] for row in chosen]),
        np.array([[record.calibrated_ms for record in row] for row in chosen]),
    )


def _joined(parts: Sequence[Episodes]) -> Episodes:
    scores, latencies = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(latencies)


def curves_of(live: Mapping[float, Live]) -> dict[str, Curve]:
    """The controller and its rivals by price, as curves of accuracy against device time."""
    return curves_of_outcomes({price: one.outcomes() for price, one in live.items()})


def table_factor(live: Live, rivals: Mapping[str, KnobTable], test: ProfileTable) -> float:
    """The ratio of live latencies to those of the test table, median over the rivals' choices."""
    ratios, budgets_ms = [], live.result.budgets_ms
    column_of = {knobs: column for column, knobs in enumerate(test.configurations)}
    for name, (_, latencies_SK) in live.rivals.items():
        chosen = [
            [rivals[name].at(ms, task, live.result.price) for ms in budgets_ms]
            for task in test.tasks
        ]
        columns_SK = np.array([[column_of[knobs] for knobs in row] for row in chosen])
        ratios.append(latencies_SK / np.take_along_axis(test.latencies_ms, columns_SK, 1))
    return float(np.median(np.stack(ratios)))

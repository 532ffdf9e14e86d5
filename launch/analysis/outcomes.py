"""What a policy achieved: accuracy within budget and violations, by budget and by sample.

Violations count feasible episodes only: those whose budget the cheapest configuration meets on the
sample.

Shapes: S samples, K budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.prices import FREE
from envs.reward import is_violation, score_within_budget, violation_rate
from launch.analysis.knob_table import KnobTable
from launch.analysis.statistics import Interval, half_widths, or_none
from rollout.profiling.profile_table import ProfileTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One policy's results at every budget.

    Attributes:
        in_budget_accuracy: mean score that counts only within budget, [K].
        ci: half width of its 95 % interval over samples, [K].
        violation: share of feasible episodes over budget, [K]; NaN where none is feasible.
        violation_rate: share of all feasible episodes over budget.
        by_sample: score within budget of each sample, mean over the budgets, [S].
        ms_by_sample: latency in ms of each sample, mean over the budgets, [S].
        names: the choice at each budget, for tables.
    """

    in_budget_accuracy: np.ndarray
    ci: np.ndarray
    violation: np.ndarray
    violation_rate: float
    by_sample: np.ndarray
    ms_by_sample: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        inside_SK: np.ndarray,
        over_SK: np.ndarray,
        feasible_SK: np.ndarray,
        latency_ms_SK: np.ndarray,
        names: Sequence[str] = (),
    ) -> Outcome:
        """From scores that are zero over budget, chances of being over budget, and latencies."""
        return cls(
            in_budget_accuracy=inside_SK.mean(0),
            ci=half_widths(inside_SK),
            violation=violation_rate(over_SK, feasible_SK, axis=0),
            violation_rate=float(violation_rate(over_SK, feasible_SK)),
            by_sample=inside_SK.mean(1),
            ms_by_sample=latency_ms_SK.mean(1),
            names=tuple(names),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values, which have no NaN."""
        return {
            "in_budget_accuracy": self.in_budget_accuracy.tolist(),
            "ci": or_none(self.ci),
            "violation": or_none(self.violation),
            "violation_rate": or_none(np.array([self.violation_rate]))[0],
            "by_sample": self.by_sample.tolist(),
            "ms_by_sample": self.ms_by_sample.tolist(),
            "names": list(self.names),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """Reads what `to_json` wrote; raises KeyError or ValueError for anything else."""
        names = ("in_budget_accuracy", "ci", "violation", "by_sample", "ms_by_sample")
        return cls(
            **{name: np.array(data[name], np.float64) for name in names},
            violation_rate=float(np.array(data["violation_rate"], np.float64)),
            names=tuple(data["names"]),
        )

    @property
    def accuracy(self) -> float:
        """Mean score within budget over all budgets."""
        return float(self.by_sample.mean())

    @property
    def mean_ms(self) -> float:
        """Mean latency in ms over all budgets: the device time of an answer."""
        return float(self.ms_by_sample.mean())

    def ahead_of(self, other: Outcome) -> Interval:
        """Difference of `accuracy` on the same samples."""
        return Interval.of(self.by_sample - other.by_sample)


def outcome(
    scores_SK: np.ndarray,
    latencies_SK: np.ndarray,
    budgets_ms: np.ndarray,
    feasible_SK: np.ndarray,
    names: Sequence[str] = (),
) -> Outcome:
    """The outcome of measured episodes, one per sample and budget."""
    inside_SK = score_within_budget(scores_SK, latencies_SK, budgets_ms)
    over_SK = is_violation(latencies_SK, budgets_ms)
    return Outcome.of(inside_SK, over_SK, feasible_SK, latencies_SK, names)


def outcome_on(
    table: ProfileTable, policy: KnobTable, budgets_ms: np.ndarray, price: float = FREE
) -> Outcome:
    """The outcome of a policy's choices at a price on a profile."""
    column_of = {knobs: column for column, knobs in enumerate(table.configurations)}
    columns_TK = {
        task: [column_of[policy.at(ms, task, price)] for ms in budgets_ms]
        for task in set(table.tasks)
    }
    columns_SK = np.array([columns_TK[task] for task in table.tasks])
    return outcome(
        np.take_along_axis(table.scores, columns_SK, 1),
        np.take_along_axis(table.latencies_ms, columns_SK, 1),
        budgets_ms,
        table.feasible(budgets_ms),
        [str(policy.at(ms, price=price)) for ms in budgets_ms],
    )

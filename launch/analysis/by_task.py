"""Choosing configurations of a profile per task: means, the limit on violations, the table made.

Shapes: S samples, C configurations, K budgets, T tasks in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.reward import score_within_budget
from envs.spec import Knobs
from launch.analysis.knob_table import KnobTable
from rollout.profiling.profile_table import ProfileTable


def of_columns(
    table: ProfileTable,
    budgets_ms: np.ndarray,
    columns_K: Sequence[int],
    columns_TK: Sequence[Sequence[int]] = (),
) -> KnobTable:
    """The policy of columns at ascending budgets, and perhaps of others for each task."""

    def named(columns: Sequence[int]) -> tuple[Knobs, ...]:
        return tuple(table.configurations[column] for column in columns)

    tasks = sorted(set(table.tasks)) if len(columns_TK) else []
    return KnobTable(
        budgets_ms=tuple(np.asarray(budgets_ms, np.float64).tolist()),
        knobs=(named(columns_K),),
        by_task={t: (named(row),) for t, row in zip(tasks, columns_TK, strict=True)},
    )


def members(table: ProfileTable, shrinkage: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the samples in each task's mean [T, S], and each task's share [T]."""
    task_S = np.unique(table.tasks, return_inverse=True)[1]
    member_TS = np.eye(task_S.max() + 1)[:, task_S]
    shares_T = member_TS.mean(1)
    member_TS /= member_TS.sum(1, keepdims=True)
    return (1 - shrinkage) * member_TS + shrinkage / len(task_S), shares_T


def slowdown(table: ProfileTable, member_TS: np.ndarray) -> np.ndarray:
    """So little that it only decides between equals, of which the faster one is better: [T, C]."""
    return 1e-6 * (member_TS @ table.latencies_ms) / table.latencies_ms.max()


def violation_cost_within(
    gain_TC: np.ndarray, over_TC: np.ndarray, shares_T: np.ndarray, limit: float, lowest: float
) -> float:
    """The lowest cost of a violation that keeps their share; the highest if none does."""

    def violation(cost: float) -> float:
        chosen_T = (gain_TC - cost * over_TC).argmax(1)
        return float(shares_T @ over_TC[np.arange(len(shares_T)), chosen_T])

    low, high = lowest, 1e3
    if violation(low) <= limit:
        return low
    if violation(high) > limit:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if violation(middle) <= limit else (middle, high)
    return high


def time_cost(table: ProfileTable, cost_per_ms: float) -> np.ndarray:
    """What the time of every execution costs, in right answers: [S, C]."""
    return cost_per_ms * table.latencies_ms


def within_budgets(table: ProfileTable, budgets_ms: np.ndarray) -> np.ndarray:
    """Every score of a table, counted within each budget alone: [S, C, K]."""
    return score_within_budget(table.scores[:, :, None], table.latencies_ms[:, :, None], budgets_ms)

"""The controller's rivals: policies derived from a profile.

A rival is a `KnobTable` of configurations in a profile. It is chosen on one profile and scored on
another one, or live. Violations count feasible episodes only: those whose budget the cheapest
configuration meets on the sample.

Shapes: S samples, C configurations, K budgets, T tasks in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from envs.reward import (
    FIXED_VIOLATION_COST,
    ExpectedOutcome,
    is_violation,
    score_within_budget,
    violation_rate,
)
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Knobs
from launch.analysis.knob_table import KnobTable
from launch.analysis.statistics import Interval, half_widths, or_none
from rollout.profiling.profile_table import ProfileTable

TARGET_VIOLATION = 0.05
SHRINKAGES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One policy's results at every budget.

    Attributes:
        in_budget_accuracy: mean score that counts only within budget, [K].
        ci: half width of its 95 % interval over samples, [K].
        violation: share of feasible episodes over budget, [K]; NaN where none is feasible.
        violation_rate: share of all feasible episodes over budget.
        by_sample: score within budget of each sample, mean over the budgets, [S].
        names: the choice at each budget, for tables.
    """

    in_budget_accuracy: np.ndarray
    ci: np.ndarray
    violation: np.ndarray
    violation_rate: float
    by_sample: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        inside_SK: np.ndarray,
        over_SK: np.ndarray,
        feasible_SK: np.ndarray,
        names: Sequence[str] = (),
    ) -> Outcome:
        """From scores that are zero over budget, and chances of being over budget."""
        return cls(
            in_budget_accuracy=inside_SK.mean(0),
            ci=half_widths(inside_SK),
            violation=violation_rate(over_SK, feasible_SK, axis=0),
            violation_rate=float(violation_rate(over_SK, feasible_SK)),
            by_sample=inside_SK.mean(1),
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
            "names": list(self.names),
        }

    @property
    def accuracy(self) -> float:
        """Mean score within budget over all budgets."""
        return float(self.by_sample.mean())

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
    return Outcome.of(inside_SK, is_violation(latencies_SK, budgets_ms), feasible_SK, names)


def outcome_on(table: ProfileTable, policy: KnobTable, budgets_ms: np.ndarray) -> Outcome:
    """The outcome of a policy's choices on a profile."""
    column_of = {knobs: column for column, knobs in enumerate(table.configurations)}
    columns_TK = {
        task: [column_of[policy.at(budget_ms, task)] for budget_ms in budgets_ms]
        for task in set(table.tasks)
    }
    columns_SK = np.array([columns_TK[task] for task in table.tasks])
    return outcome(
        np.take_along_axis(table.scores, columns_SK, 1),
        np.take_along_axis(table.latencies_ms, columns_SK, 1),
        budgets_ms,
        table.feasible(budgets_ms),
        [str(policy.at(budget_ms)) for budget_ms in budgets_ms],
    )


def _of_columns(
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
        knobs=named(columns_K),
        by_task=dict(zip(tasks, map(named, columns_TK), strict=True)),
    )


# -- rivals, chosen on a validation table ---------------------------------------------------------


def rivals(validation: ProfileTable, budgets_ms: np.ndarray) -> dict[str, KnobTable]:
    """Every rival that can be chosen without the test samples, by name."""
    every = np.ones(len(validation.configurations), dtype=bool)
    found = {
        "lookup": lookup(validation, budgets_ms, every),
        "lookup by task": lookup_by_task(
            validation, budgets_ms, shrinkage=best_shrinkage(validation, budgets_ms)
        ),
    }
    for name, allowed in single_knob_masks(validation.configurations).items():
        if allowed.any():
            found[name] = lookup(validation, budgets_ms, allowed)
    found["static"] = best_static(validation, budgets_ms)
    return found


def lookup(table: ProfileTable, budgets_ms: np.ndarray, allowed: np.ndarray) -> KnobTable:
    """For each budget the configuration with the highest expected reward.

    Only configurations count that violate the budget on at most 5 % of the samples for which it is
    feasible: a margin for each budget. If none does, the one with the fewest violations is taken.
    `allowed` is bool [C].
    """
    mean_C = table.latencies_ms.mean(0)
    columns = []
    for budget_ms in budgets_ms:
        expected = expected_outcomes(table, budget_ms)
        feasible_S = table.feasible(budget_ms)[:, 0]
        over_C = expected.violation.sum(0) / max(feasible_S.sum(), 1)
        over_C = np.where(allowed, over_C, np.inf)
        limit = max(TARGET_VIOLATION, over_C.min())
        gain_C = np.where(over_C <= limit, expected.reward(FIXED_VIOLATION_COST).mean(0), -np.inf)
        best = np.flatnonzero(gain_C >= gain_C.max() - 1e-9)
        columns.append(int(best[mean_C[best].argmin()]))
    return _of_columns(table, budgets_ms, columns)


def lookup_by_task(table: ProfileTable, budgets_ms: np.ndarray, *, shrinkage: float) -> KnobTable:
    """A lookup table per task.

    Accuracies and violations of each task are drawn to those of the mixture by the share
    `shrinkage`, because each task has few samples.
    """
    columns_TK = best_by_task(
        table, budgets_ms, max_violation=TARGET_VIOLATION, shrinkage=shrinkage
    ).tolist()
    every = np.ones(len(table.configurations), dtype=bool)
    by_task = _of_columns(table, budgets_ms, columns_TK[0], columns_TK)
    return replace(by_task, knobs=lookup(table, budgets_ms, every).knobs)


def best_shrinkage(table: ProfileTable, budgets_ms: np.ndarray) -> float:
    """The shrinkage of `lookup_by_task` with the best accuracy in five-fold cross-validation."""
    fold_S = np.random.default_rng(0).permutation(len(table.sample_ids)) % FOLDS
    parts = [
        (table.rows(np.flatnonzero(fold_S != fold)), table.rows(np.flatnonzero(fold_S == fold)))
        for fold in range(FOLDS)
        if (fold_S == fold).any() and (fold_S != fold).any()
    ]

    def accuracy(shrinkage: float) -> float:
        return float(
            np.mean(
                [
                    outcome_on(
                        held_out,
                        lookup_by_task(chosen_on, budgets_ms, shrinkage=shrinkage),
                        budgets_ms,
                    ).accuracy
                    for chosen_on, held_out in parts
                ]
            )
        )

    return max(SHRINKAGES, key=accuracy) if parts else 1.0


def single_knob_masks(configurations: Sequence[Knobs]) -> dict[str, np.ndarray]:
    """Which configurations differ from the full one in a single knob."""
    full = FULL_KNOBS
    rules = {
        "tier only": lambda k: (k.top_k, k.num_blocks) == (full.top_k, full.num_blocks),
        "top-k only": lambda k: (k.tier, k.num_blocks) == (full.tier, full.num_blocks),
        "blocks only": lambda k: (k.tier, k.top_k) == (full.tier, full.top_k),
    }
    return {
        name: np.array([k.position == 1 and rule(k) for k in configurations])
        for name, rule in rules.items()
    }


def best_static(table: ProfileTable, budgets_ms: np.ndarray) -> KnobTable:
    """The one configuration with the best accuracy over all budgets."""
    best = int(_inside(table, budgets_ms).mean((0, 2)).argmax())
    return KnobTable.fixed(table.configurations[best])


# -- policies scored on the same table: bounds, not rivals ----------------------------------------


def named_statics(table: ProfileTable, budgets_ms: np.ndarray) -> dict[str, Outcome]:
    """The cheapest, the full, and in hindsight the best static configuration."""
    found = {
        f"always {name} ({knobs})": KnobTable.fixed(knobs)
        for name, knobs in (("cheapest", CHEAPEST_KNOBS), ("full", FULL_KNOBS))
        if knobs in table.configurations
    }
    best = best_static(table, budgets_ms)
    found[f"best static in hindsight ({best.knobs[0]})"] = best
    return {name: outcome_on(table, policy, budgets_ms) for name, policy in found.items()}


def random_policy(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The expected outcome of uniformly random configurations."""
    over_SK = is_violation(table.latencies_ms[:, :, None], budgets_ms).mean(1)
    inside_SK = _inside(table, budgets_ms).mean(1)
    names = ("uniform",) * len(budgets_ms)
    return Outcome.of(inside_SK, over_SK, table.feasible(budgets_ms), names)


def oracle_per_budget(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The best single configuration of each budget, in hindsight on the same table."""
    columns = _inside(table, budgets_ms).mean(0).argmax(0).tolist()
    return outcome_on(table, _of_columns(table, budgets_ms, columns), budgets_ms)


def oracle_per_task(
    table: ProfileTable, budgets_ms: np.ndarray, *, max_violation: float = 1.0
) -> Outcome:
    """The best configuration of each (task, budget), in hindsight on the same table.

    This is the best that a policy can do that sees the task and the budget, as the controller does.
    Unlike the rivals, which earn rewards, it maximises the accuracy within budget itself. With
    `max_violation`, one cost of a violation for all tasks is found by bisection at each budget, so
    that the violation rate stays below it; if no cost achieves that, violations are minimised.
    """
    member_TS, shares_T = _members(table)
    slowdown_TC = _slowdown(table, member_TS)
    columns_KT = []
    for budget_ms in budgets_ms:
        inside_SC = score_within_budget(table.scores, table.latencies_ms, budget_ms)
        feasible_S1 = table.feasible(budget_ms)
        over_SC = is_violation(table.latencies_ms, budget_ms) & feasible_S1
        gain_TC, over_TC = member_TS @ inside_SC - slowdown_TC, member_TS @ over_SC
        limit = max_violation * float(feasible_S1.mean())
        cost = _violation_cost_within(gain_TC, over_TC, shares_T, limit, lowest=0.0)
        columns_KT.append((gain_TC - cost * over_TC).argmax(1))
    columns_TK = np.array(columns_KT).T.tolist()
    policy = _of_columns(table, budgets_ms, columns_TK[0], columns_TK)
    return outcome_on(table, policy, budgets_ms)


def oracle_per_sample(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The best configuration of each sample and budget, in hindsight: an upper bound."""
    best_SK = _inside(table, budgets_ms).max(1)
    over_SK = np.all(is_violation(table.latencies_ms[:, :, None], budgets_ms), axis=1)
    names = ("by sample",) * len(budgets_ms)
    return Outcome.of(best_SK, over_SK, table.feasible(budgets_ms), names)


def constant_per_task(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The configuration of each task that is best over all budgets, in hindsight.

    This is the best that a policy can do without knowing the budget.
    """
    by_task = {
        task: best_static(table.only_task(task), budgets_ms).knobs for task in set(table.tasks)
    }
    any_task = KnobTable.fixed(table.configurations[0])
    return outcome_on(table, replace(any_task, by_task=by_task), budgets_ms)


# -- what a configuration is worth for a task -----------------------------------------------------


def best_by_task(
    table: ProfileTable,
    budgets_ms: np.ndarray,
    *,
    max_violation: float,
    shrinkage: float = 0.0,
) -> np.ndarray:
    """Columns with the highest gain, int64 [T, K]."""
    gains_KTC = constrained_gains(
        table, budgets_ms, max_violation=max_violation, shrinkage=shrinkage
    )
    return gains_KTC.argmax(-1).T


def constrained_gains(
    table: ProfileTable,
    budgets_ms: np.ndarray,
    *,
    max_violation: float,
    scatter: float = 0.0,
    shrinkage: float = 0.0,
) -> np.ndarray:
    """The gain of each configuration for each task: [K, T, C].

    The gain is the expected reward, at the lowest lambda from `FIXED_VIOLATION_COST` on that keeps
    the violations; of equals the faster one gains more. With `scatter`, each latency stands for a
    log-normal distribution of that standard deviation. `shrinkage` is the share by which each task
    is drawn to the mixture.
    """
    member_TS, shares_T = _members(table, shrinkage)
    slowdown_TC = _slowdown(table, member_TS)
    gains = []
    for budget_ms in budgets_ms:
        expected = expected_outcomes(table, budget_ms, scatter)
        gain_TC = member_TS @ expected.reward(0.0) - slowdown_TC
        over_TC = member_TS @ expected.violation.round(9)
        limit = max_violation * float(table.feasible(budget_ms).mean())
        cost = _violation_cost_within(
            gain_TC, over_TC, shares_T, limit, lowest=FIXED_VIOLATION_COST
        )
        gains.append(gain_TC - cost * over_TC)
    return np.array(gains)


def _members(table: ProfileTable, shrinkage: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the samples in each task's mean [T, S], and each task's share [T]."""
    task_S = np.unique(table.tasks, return_inverse=True)[1]
    member_TS = np.eye(task_S.max() + 1)[:, task_S]
    shares_T = member_TS.mean(1)
    member_TS /= member_TS.sum(1, keepdims=True)
    return (1 - shrinkage) * member_TS + shrinkage / len(task_S), shares_T


def _slowdown(table: ProfileTable, member_TS: np.ndarray) -> np.ndarray:
    """So little that it only decides between equals, of which the faster one is better: [T, C]."""
    return 1e-6 * (member_TS @ table.latencies_ms) / table.latencies_ms.max()


def expected_outcomes(
    table: ProfileTable, budget_ms: float, scatter: float = 0.0
) -> ExpectedOutcome:
    """What every configuration is expected to earn on every sample at a budget: [S, C]."""
    return ExpectedOutcome.of(
        table.scores,
        np.log(table.latencies_ms / budget_ms),
        scatter,
        cheapest_log_ratio=np.log(table.cheapest_ms / budget_ms)[:, None],
    )


def _violation_cost_within(
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


def _inside(table: ProfileTable, budgets_ms: np.ndarray) -> np.ndarray:
    """Every score of a table, counted within each budget alone: [S, C, K]."""
    return score_within_budget(table.scores[:, :, None], table.latencies_ms[:, :, None], budgets_ms)

"""The controller's rivals: tables and static configurations that are chosen on a profile.

A rival is a `KnobTable` of configurations in a profile of the validation split. It is scored on
another profile, or live.

Shapes: S samples, C configurations, K budgets, T tasks in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from envs.prices import FREE
from envs.reward import FIXED_VIOLATION_COST, ExpectedOutcome
from envs.spec import FULL_KNOBS, Knobs
from launch.analysis.by_task import (
    members,
    of_columns,
    slowdown,
    time_cost,
    violation_cost_within,
    within_budgets,
)
from launch.analysis.knob_table import KnobTable
from launch.analysis.outcomes import outcome_on
from rollout.profiling.profile_table import ProfileTable

TARGET_VIOLATION = 0.05
SHRINKAGES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
FOLDS = 5

RIVALS = {
    "lookup by task": "table per task",
    "lookup": "table",
    "static": "static configuration",
}
"""Rivals that are chosen on the whole profile: lookup tables and the best static configuration of
each price. By name, and what the closing table calls them."""

SMALL_PROFILE = "small profile: "
"""Before the names of the same rivals, chosen on as many samples as could have been profiled in the
device time of the training."""

ALL_RIVALS = {
    **RIVALS,
    **{SMALL_PROFILE + n: f"{RIVALS[n]}, small" for n in ("lookup by task", "lookup")},
}


def choose_rivals(
    validation: ProfileTable,
    budgets_ms: np.ndarray,
    prices: Sequence[float] = (FREE,),
    full_ms: float | None = None,
) -> dict[str, KnobTable]:
    """Every rival that can be chosen without the test samples, by name.

    Args:
        validation: the profile that they are chosen on.
        budgets_ms: ascending budgets that they are chosen for.
        prices: ascending prices that they are chosen for.
        full_ms: latency of the full configuration, whose time a price is for; by default its median
            in the profile.
    """
    if full_ms is None:
        full_ms = float(np.median(validation.latencies_ms[:, validation.column(FULL_KNOBS)]))
    by_price = {price: _rivals_at(validation, budgets_ms, price / full_ms) for price in prices}
    names = by_price[prices[0]]
    return {
        name: KnobTable.by_price({price: found[name] for price, found in by_price.items()})
        for name in names
    }


def _rivals_at(
    validation: ProfileTable, budgets_ms: np.ndarray, cost_per_ms: float
) -> dict[str, KnobTable]:
    every = np.ones(len(validation.configurations), dtype=bool)
    shrinkage = best_shrinkage(validation, budgets_ms, cost_per_ms)
    found = {
        "lookup": lookup(validation, budgets_ms, every, cost_per_ms),
        "lookup by task": lookup_by_task(
            validation, budgets_ms, shrinkage=shrinkage, cost_per_ms=cost_per_ms
        ),
    }
    for name, allowed in single_knob_masks(validation.configurations).items():
        if allowed.any():
            found[name] = lookup(validation, budgets_ms, allowed, cost_per_ms)
    columns = [best_static(validation, budgets_ms, cost_per_ms)] * len(budgets_ms)
    found["static"] = of_columns(validation, budgets_ms, columns)
    return found


def lookup(
    table: ProfileTable, budgets_ms: np.ndarray, allowed: np.ndarray, cost_per_ms: float = 0.0
) -> KnobTable:
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
        gain_C = expected.reward(FIXED_VIOLATION_COST, cost_per_ms * budget_ms).mean(0)
        gain_C = np.where(over_C <= limit, gain_C, -np.inf)
        best = np.flatnonzero(gain_C >= gain_C.max() - 1e-9)
        columns.append(int(best[mean_C[best].argmin()]))
    return of_columns(table, budgets_ms, columns)


def lookup_by_task(
    table: ProfileTable, budgets_ms: np.ndarray, *, shrinkage: float, cost_per_ms: float = 0.0
) -> KnobTable:
    """A lookup table per task.

    Accuracies, violations and times of each task are drawn to those of the mixture by the share
    `shrinkage`, because each task has few samples.
    """
    columns_TK = best_by_task(
        table,
        budgets_ms,
        max_violation=TARGET_VIOLATION,
        shrinkage=shrinkage,
        cost_per_ms=cost_per_ms,
    ).tolist()
    every = np.ones(len(table.configurations), dtype=bool)
    by_task = of_columns(table, budgets_ms, columns_TK[0], columns_TK)
    return replace(by_task, knobs=lookup(table, budgets_ms, every, cost_per_ms).knobs)


def best_shrinkage(table: ProfileTable, budgets_ms: np.ndarray, cost_per_ms: float = 0.0) -> float:
    """The shrinkage of `lookup_by_task` that is worth most in five-fold cross-validation.

    Worth is accuracy within budget less the cost of time.
    """
    fold_S = np.random.default_rng(0).permutation(len(table.sample_ids)) % FOLDS
    parts = [
        (table.rows(np.flatnonzero(fold_S != fold)), table.rows(np.flatnonzero(fold_S == fold)))
        for fold in range(FOLDS)
        if (fold_S == fold).any() and (fold_S != fold).any()
    ]

    def worth(shrinkage: float) -> float:
        outcomes = [
            outcome_on(
                held_out,
                lookup_by_task(chosen_on, budgets_ms, shrinkage=shrinkage, cost_per_ms=cost_per_ms),
                budgets_ms,
            )
            for chosen_on, held_out in parts
        ]
        return float(np.mean([o.accuracy - cost_per_ms * o.mean_ms for o in outcomes]))

    return max(SHRINKAGES, key=worth) if parts else 1.0


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


def best_static(table: ProfileTable, budgets_ms: np.ndarray, cost_per_ms: float = 0.0) -> int:
    """Column of the one configuration that is worth most over all budgets.

    Worth is accuracy within budget less the cost of time.
    """
    accuracy_C = within_budgets(table, budgets_ms).mean((0, 2))
    return int((accuracy_C - time_cost(table, cost_per_ms).mean(0)).argmax())


def best_by_task(
    table: ProfileTable,
    budgets_ms: np.ndarray,
    *,
    max_violation: float,
    shrinkage: float = 0.0,
    cost_per_ms: float = 0.0,
) -> np.ndarray:
    """Columns with the highest gain, int64 [T, K]."""
    gains_KTC = constrained_gains(
        table,
        budgets_ms,
        max_violation=max_violation,
        shrinkage=shrinkage,
        cost_per_ms=cost_per_ms,
    )
    return gains_KTC.argmax(-1).T


def constrained_gains(
    table: ProfileTable,
    budgets_ms: np.ndarray,
    *,
    max_violation: float,
    scatter: float = 0.0,
    shrinkage: float = 0.0,
    cost_per_ms: float = 0.0,
) -> np.ndarray:
    """The gain of each configuration for each task: [K, T, C].

    The gain is the expected reward, at the lowest lambda from `FIXED_VIOLATION_COST` on that keeps
    the violations; of equals the faster one gains more. With `scatter`, each latency stands for a
    log-normal distribution of that standard deviation. `shrinkage` is the share by which each task
    is drawn to the mixture. `cost_per_ms` is the cost of a millisecond in right answers.
    """
    member_TS, shares_T = members(table, shrinkage)
    slowdown_TC = slowdown(table, member_TS)
    gains = []
    for budget_ms in budgets_ms:
        expected = expected_outcomes(table, budget_ms, scatter)
        gain_TC = member_TS @ expected.reward(0.0, cost_per_ms * budget_ms) - slowdown_TC
        over_TC = member_TS @ expected.violation.round(9)
        limit = max_violation * float(table.feasible(budget_ms).mean())
        cost = violation_cost_within(gain_TC, over_TC, shares_T, limit, lowest=FIXED_VIOLATION_COST)
        gains.append(gain_TC - cost * over_TC)
    return np.array(gains)


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

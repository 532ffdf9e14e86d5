"""Policies scored on the profile that they are chosen on: bounds for the rivals, not rivals.

Shapes: S samples, C configurations, K budgets, T tasks in alphabetical order.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.reward import is_violation, score_within_budget
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS
from launch.analysis.by_task import (
    members,
    of_columns,
    slowdown,
    time_cost,
    violation_cost_within,
    within_budgets,
)
from launch.analysis.knob_table import KnobTable
from launch.analysis.outcomes import Outcome, outcome_on
from launch.analysis.rivals import best_static
from rollout.profiling.profile_table import ProfileTable


def named_statics(table: ProfileTable, budgets_ms: np.ndarray) -> dict[str, Outcome]:
    """The cheapest, the full, and in hindsight the best static configuration."""
    found = {
        f"always {name} ({knobs})": KnobTable.fixed(knobs)
        for name, knobs in (("cheapest", CHEAPEST_KNOBS), ("full", FULL_KNOBS))
        if knobs in table.configurations
    }
    best = table.configurations[best_static(table, budgets_ms)]
    found[f"best static in hindsight ({best})"] = KnobTable.fixed(best)
    return {name: outcome_on(table, policy, budgets_ms) for name, policy in found.items()}


def random_policy(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The expected outcome of uniformly random configurations."""
    over_SK = is_violation(table.latencies_ms[:, :, None], budgets_ms).mean(1)
    inside_SK = within_budgets(table, budgets_ms).mean(1)
    ms_SK = np.repeat(table.latencies_ms.mean(1)[:, None], len(budgets_ms), axis=1)
    names = ("uniform",) * len(budgets_ms)
    return Outcome.of(inside_SK, over_SK, table.feasible(budgets_ms), ms_SK, names)


def oracle_per_budget(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The best single configuration of each budget, in hindsight on the same table."""
    columns = within_budgets(table, budgets_ms).mean(0).argmax(0).tolist()
    return outcome_on(table, of_columns(table, budgets_ms, columns), budgets_ms)


def oracle_per_task(
    table: ProfileTable,
    budgets_ms: np.ndarray,
    *,
    max_violation: float = 1.0,
    cost_per_ms: float = 0.0,
) -> Outcome:
    """The best configuration of each (task, budget), in hindsight on the same table.

    This is the best that a policy can do that sees the task and the budget, as the controller does.
    Unlike the rivals, which earn rewards, it maximises the accuracy within budget itself, less the
    cost of time. With
    `max_violation`, one cost of a violation for all tasks is found by bisection at each budget, so
    that the violation rate stays below it; if no cost achieves that, violations are minimised.
    """
    member_TS, shares_T = members(table)
    slowdown_TC = slowdown(table, member_TS)
    columns_KT = []
    for budget_ms in budgets_ms:
        inside_SC = score_within_budget(table.scores, table.latencies_ms, budget_ms)
        inside_SC = inside_SC - time_cost(table, cost_per_ms)
        feasible_S1 = table.feasible(budget_ms)
        over_SC = is_violation(table.latencies_ms, budget_ms) & feasible_S1
        gain_TC, over_TC = member_TS @ inside_SC - slowdown_TC, member_TS @ over_SC
        limit = max_violation * float(feasible_S1.mean())
        cost = violation_cost_within(gain_TC, over_TC, shares_T, limit, lowest=0.0)
        columns_KT.append((gain_TC - cost * over_TC).argmax(1))
    columns_TK = np.array(columns_KT).T.tolist()
    policy = of_columns(table, budgets_ms, columns_TK[0], columns_TK)
    return outcome_on(table, policy, budgets_ms)


def oracle_per_sample(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The best configuration of each sample and budget, in hindsight: an upper bound."""
    inside_SCK = within_budgets(table, budgets_ms)
    best_SK = inside_SCK.max(1)
    over_SK = np.all(is_violation(table.latencies_ms[:, :, None], budgets_ms), axis=1)
    as_good_SCK = inside_SCK == best_SK[:, None]
    ms_SK = np.where(as_good_SCK, table.latencies_ms[:, :, None], np.inf).min(1)
    names = ("by sample",) * len(budgets_ms)
    return Outcome.of(best_SK, over_SK, table.feasible(budgets_ms), ms_SK, names)


def constant_per_task(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The configuration of each task that is best over all budgets, in hindsight.

    This is the best that a policy can do without knowing the budget.
    """
    by_task = {
        task: ((table.configurations[best_static(table.only_task(task), budgets_ms)],),)
        for task in set(table.tasks)
    }
    any_task = KnobTable.fixed(table.configurations[0])
    return outcome_on(table, replace(any_task, by_task=by_task), budgets_ms)

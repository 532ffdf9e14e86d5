"""The controller's rivals: policies derived from a profile.

A baseline maps each budget to configurations of a profile table; its accuracy within budget and its
violation rate are computed on a table of measured scores and latencies.

Shapes: S samples, C configurations, K budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from envs.reward import is_violation, score_within_budget
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Knobs
from launch.analysis.statistics import Interval, half_widths
from rollout.profiling.profile_table import ProfileTable

TARGET_VIOLATION = 0.05
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.98, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One policy's results at every budget.

    Attributes:
        in_budget_accuracy: mean score that counts only within budget, [K].
        ci: half width of its 95 % interval over samples, [K].
        violation: share of episodes over budget, [K].
        by_sample: score within budget of each sample, mean over the budgets, [S].
        names: the choice at each budget, for tables.
    """

    in_budget_accuracy: np.ndarray
    ci: np.ndarray
    violation: np.ndarray
    by_sample: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, inside_SK: np.ndarray, violation: np.ndarray, names: Sequence[str] = ()) -> Outcome:
        """From scores that are zero over budget, and violation rates [K]."""
        return cls(
            in_budget_accuracy=inside_SK.mean(0),
            ci=half_widths(inside_SK),
            violation=violation,
            by_sample=inside_SK.mean(1),
            names=tuple(names),
        )

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
    names: Sequence[str] = (),
) -> Outcome:
    """The outcome of measured episodes, one per sample and budget."""
    inside_SK = score_within_budget(scores_SK, latencies_SK, budgets_ms)
    return Outcome.of(inside_SK, is_violation(latencies_SK, budgets_ms).mean(0), names)


def of_columns(table: ProfileTable, columns: Sequence[int], budgets_ms: np.ndarray) -> Outcome:
    """The outcome on a table of one configuration per budget."""
    names = [str(table.configurations[c]) for c in columns]
    pick = list(columns)
    return outcome(table.scores[:, pick], table.latencies_ms[:, pick], budgets_ms, names)


def lookup(
    table: ProfileTable, budgets_ms: np.ndarray, *, quantile: float, allowed: np.ndarray
) -> list[int]:
    """The most accurate configuration whose latency quantile fits each budget.

    If none fits, the fastest one is chosen. `allowed` is bool [C].
    """
    latency_C = np.quantile(table.latencies_ms, quantile, axis=0)
    accuracy_C = table.scores.mean(0)
    columns = []
    for budget_ms in budgets_ms:
        fits = allowed & (latency_C <= budget_ms)
        if fits.any():
            columns.append(int(np.where(fits, accuracy_C, -1).argmax()))
        else:
            columns.append(int(np.where(allowed, latency_C, np.inf).argmin()))
    return columns


def margin_quantile(table: ProfileTable, budgets_ms: np.ndarray, allowed: np.ndarray) -> float:
    """The latency quantile with the best accuracy on validation at no more than 5 % violations."""
    best, best_accuracy = QUANTILES[-1], -1.0
    for quantile in QUANTILES:
        columns = lookup(table, budgets_ms, quantile=quantile, allowed=allowed)
        result = of_columns(table, columns, budgets_ms)
        if result.violation.mean() <= TARGET_VIOLATION and result.accuracy > best_accuracy:
            best, best_accuracy = quantile, result.accuracy
    return best


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


def lookup_columns(
    validation: ProfileTable, budgets_ms: np.ndarray
) -> dict[str, tuple[list[int], float]]:
    """Columns and quantile of every lookup table, chosen on validation alone."""
    every = np.ones(len(validation.configurations), dtype=bool)
    margin = margin_quantile(validation, budgets_ms, every)
    found = {
        "lookup": (lookup(validation, budgets_ms, quantile=0.5, allowed=every), 0.5),
        "lookup with margin": (
            lookup(validation, budgets_ms, quantile=margin, allowed=every),
            margin,
        ),
    }
    for name, allowed in single_knob_masks(validation.configurations).items():
        if allowed.any():
            quantile = margin_quantile(validation, budgets_ms, allowed)
            found[name] = (
                lookup(validation, budgets_ms, quantile=quantile, allowed=allowed),
                quantile,
            )
    return found


def _inside(table: ProfileTable, budgets_ms: np.ndarray) -> np.ndarray:
    """Every score of a table, counted within each budget alone: [S, C, K]."""
    return score_within_budget(table.scores[:, :, None], table.latencies_ms[:, :, None], budgets_ms)


def static_policies(table: ProfileTable, budgets_ms: np.ndarray) -> dict[str, Outcome]:
    """Each configuration by itself, at every budget."""
    return {
        str(knobs): of_columns(table, [c] * len(budgets_ms), budgets_ms)
        for c, knobs in enumerate(table.configurations)
    }


def named_statics(table: ProfileTable, budgets_ms: np.ndarray) -> dict[str, Outcome]:
    """The cheapest, the full, and the best static configuration over all budgets."""
    every = static_policies(table, budgets_ms)
    best = max(every, key=lambda name: every[name].accuracy)
    chosen = {"cheapest": str(CHEAPEST_KNOBS), "full": str(FULL_KNOBS), "best": best}
    return {
        f"static {kind} ({name})": every[name] for kind, name in chosen.items() if name in every
    }


def random_policy(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The expected outcome of uniformly random configurations."""
    over_SCK = is_violation(table.latencies_ms[:, :, None], budgets_ms)
    inside_SK = _inside(table, budgets_ms).mean(1)
    return Outcome.of(inside_SK, over_SCK.mean((0, 1)), ("uniform",) * len(budgets_ms))


def oracle_per_budget(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The best single configuration of each budget, in hindsight on the same table."""
    columns = _inside(table, budgets_ms).mean(0).argmax(0).tolist()
    return of_columns(table, columns, budgets_ms)


def oracle_per_task(
    table: ProfileTable, budgets_ms: np.ndarray, *, max_violation: float = 1.0
) -> Outcome:
    """The best configuration of each (task, budget), in hindsight on the same table.

    This is the best that a policy can do that sees the task and the budget, as the controller does.
    With `max_violation`, one price of a violation for all tasks is found by bisection at each
    budget, so that the violation rate stays below it; if no price achieves that, violations are
    minimised.
    """
    task_S = np.unique(table.tasks, return_inverse=True)[1]
    pick_SK = best_by_task(table, budgets_ms, max_violation=max_violation)[task_S]
    return outcome(
        np.take_along_axis(table.scores, pick_SK, 1),
        np.take_along_axis(table.latencies_ms, pick_SK, 1),
        budgets_ms,
        ("by task",) * len(budgets_ms),
    )


def best_by_task(
    table: ProfileTable, budgets_ms: np.ndarray, *, max_violation: float
) -> np.ndarray:
    """Columns that `oracle_per_task` picks, int64 [tasks in alphabetical order, K]."""
    return priced_gains(table, budgets_ms, max_violation=max_violation).argmax(-1).T


def priced_gains(
    table: ProfileTable, budgets_ms: np.ndarray, *, max_violation: float, scatter: float = 0.0
) -> np.ndarray:
    """The gain of each configuration for each task: [K, tasks in alphabetical order, C].

    The gain is the accuracy within budget minus the price of its violations. Of equals, for
    instance if nothing fits, the fastest one gains most. With `scatter`, each latency stands for a
    log-normal distribution of that standard deviation, and meets a budget by that probability.
    """
    task_S = np.unique(table.tasks, return_inverse=True)[1]
    member_TS = np.eye(task_S.max() + 1)[:, task_S]
    shares_T = member_TS.mean(1)
    member_TS /= member_TS.sum(1, keepdims=True)
    slowdown_TC = 1e-6 * (member_TS @ table.latencies_ms) / table.latencies_ms.max()
    gains = []
    for budget_ms in budgets_ms:
        if scatter:
            fits_SC = ndtr(np.log(budget_ms / table.latencies_ms) / scatter)
        else:
            fits_SC = (table.latencies_ms <= budget_ms).astype(np.float64)
        gain_TC = member_TS @ (table.scores * fits_SC) - slowdown_TC
        over_TC = 1 - (member_TS @ fits_SC).round(9)
        gains.append(gain_TC - _price_within(gain_TC, over_TC, shares_T, max_violation) * over_TC)
    return np.array(gains)


def _price_within(
    gain_TC: np.ndarray, over_TC: np.ndarray, shares_T: np.ndarray, max_violation: float
) -> float:
    """The lowest price of a violation that keeps the violation rate; the highest if none does."""

    def violation(price: float) -> float:
        chosen_T = (gain_TC - price * over_TC).argmax(1)
        return float(shares_T @ over_TC[np.arange(len(shares_T)), chosen_T])

    low, high = 0.0, 1e3
    if violation(low) <= max_violation:
        return low
    if violation(high) > max_violation:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if violation(middle) <= max_violation else (middle, high)
    return high


def constant_per_task(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The configuration of each task that is best over all budgets, in hindsight.

    This is the best that a policy can do without knowing the budget.
    """
    columns_S = np.empty(len(table.sample_ids), dtype=int)
    inside_SC = _inside(table, budgets_ms).mean(2)
    for task in set(table.tasks):
        rows = np.flatnonzero(np.array(table.tasks) == task)
        columns_S[rows] = inside_SC[rows].mean(0).argmax()
    every = np.arange(len(columns_S))
    shape = (len(columns_S), len(budgets_ms))
    return outcome(
        np.broadcast_to(table.scores[every, columns_S][:, None], shape),
        np.broadcast_to(table.latencies_ms[every, columns_S][:, None], shape),
        budgets_ms,
        ("by task",) * len(budgets_ms),
    )


def oracle_per_sample(table: ProfileTable, budgets_ms: np.ndarray) -> Outcome:
    """The best configuration of each sample and budget, in hindsight: an upper bound."""
    best_SK = _inside(table, budgets_ms).max(1)
    fits = (table.latencies_ms[:, :, None] <= budgets_ms).any(1)
    return Outcome.of(best_SK, 1 - fits.mean(0), ("by sample",) * len(budgets_ms))

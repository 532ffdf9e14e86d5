"""Greedy evaluation of a policy over budgets, on the fleet that also trains.

Shapes: S samples, K budgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.reward import is_violation, score_within_budget
from envs.spec import BudgetSampler
from policy.config import PolicySetup
from rollout.fleet import Fleet
from rollout.group_rollout import GroupRollout
from rollout.requests import GroupRequest

FIRST_GROUP_ID = 10**9
"""First id of evaluation groups, beyond the ids of all training groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedySweep:
    """Results of a greedy sweep.

    Attributes:
        budgets_ms: K budgets, ascending.
        scores: answer scores [S, K].
        latencies_ms: measured latencies [S, K].
        actions: choice indices [S, K, 4].
        tasks: S task names.
        sample_ids: S ids.
    """

    budgets_ms: np.ndarray
    scores: np.ndarray
    latencies_ms: np.ndarray
    actions: np.ndarray
    tasks: tuple[str, ...]
    sample_ids: tuple[str, ...]

    @property
    def violations(self) -> np.ndarray:
        """Whether each episode exceeded its budget: bool [S, K]."""
        return is_violation(self.latencies_ms, self.budgets_ms)

    @property
    def in_budget_accuracy(self) -> float:
        """Mean score, counted only within budget."""
        return float(self._inside_SK.mean())

    @property
    def _inside_SK(self) -> np.ndarray:
        return score_within_budget(self.scores, self.latencies_ms, self.budgets_ms)

    def scalars(self, prefix: str) -> dict[str, float]:
        """Overall scalars, and accuracy and violation rate at each budget."""
        scalars = {
            f"{prefix}/in_budget_accuracy": self.in_budget_accuracy,
            f"{prefix}/score": float(self.scores.mean()),
            f"{prefix}/violation": float(self.violations.mean()),
        }
        inside = self._inside_SK.mean(0)
        for budget_ms, accuracy, rate in zip(
            self.budgets_ms, inside, self.violations.mean(0), strict=True
        ):
            scalars[f"{prefix}_accuracy/budget_{budget_ms:.0f}_ms"] = float(accuracy)
            scalars[f"{prefix}_violation/budget_{budget_ms:.0f}_ms"] = float(rate)
        return scalars

    @staticmethod
    def joined(parts: Sequence[GreedySweep]) -> GreedySweep:
        """Concatenates sweeps with the same budgets and different samples."""
        return GreedySweep(
            budgets_ms=parts[0].budgets_ms,
            scores=np.concatenate([part.scores for part in parts]),
            latencies_ms=np.concatenate([part.latencies_ms for part in parts]),
            actions=np.concatenate([part.actions for part in parts]),
            tasks=tuple(task for part in parts for task in part.tasks),
            sample_ids=tuple(name for part in parts for name in part.sample_ids),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "budgets_ms": self.budgets_ms.tolist(),
            "in_budget_accuracy": self._inside_SK.mean(0).tolist(),
            "violation": self.violations.mean(0).tolist(),
            "scores": self.scores.tolist(),
            "latencies_ms": self.latencies_ms.tolist(),
            "actions": self.actions.tolist(),
            "tasks": list(self.tasks),
            "sample_ids": list(self.sample_ids),
        }


def feasible_budgets(budgets: BudgetSampler, count: int) -> np.ndarray:
    """Evenly spread budgets from the first feasible one to the largest: [count]."""
    return np.linspace(budgets.feasible_from_ms, budgets.range.high_ms, count)


def greedy_sweep(
    fleet: Fleet[Any],
    setup: PolicySetup,
    weights: Any,
    *,
    split: str,
    num_samples: int,
    budgets_ms: Sequence[float],
    first_index: int = 0,
) -> GreedySweep:
    """Runs every sample at every budget with greedy choices, one episode at a time per device."""
    requests = [
        GroupRequest(
            group_id=FIRST_GROUP_ID + s * len(budgets_ms) + b,
            run_seed=0,
            step=0,
            split=split,
            index=first_index + s,
            budget_ms=float(budget_ms),
            group_size=0,
        )
        for s in range(num_samples)
        for b, budget_ms in enumerate(budgets_ms)
    ]
    groups = fleet.collect(fleet.submit(requests, setup, weights))
    return from_groups(groups, np.asarray(budgets_ms, dtype=np.float64))


def from_groups(groups: Sequence[GroupRollout], budgets_ms: np.ndarray) -> GreedySweep:
    """Arranges single episodes, which are ordered by sample and then by budget."""
    shape = (-1, len(budgets_ms))
    return GreedySweep(
        budgets_ms=budgets_ms,
        scores=np.array([g.scores[0] for g in groups], dtype=np.float64).reshape(shape),
        latencies_ms=np.array([g.latencies_ms[0] for g in groups]).reshape(shape),
        actions=np.array([g.actions[0] for g in groups]).reshape(*shape, 4),
        tasks=tuple(g.task for g in groups[:: len(budgets_ms)]),
        sample_ids=tuple(g.sample_id for g in groups[:: len(budgets_ms)]),
    )

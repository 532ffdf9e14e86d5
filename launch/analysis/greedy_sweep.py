"""Greedy evaluation of a policy over budgets, on the fleet that also trains.

Shapes: S samples, K budgets, R repeats, N stages.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.prices import FREE
from envs.reward import (
    FIXED_VIOLATION_COST,
    budget_reward,
    is_violation,
    score_within_budget,
    violation_rate,
)
from envs.spec import HEADS
from launch.analysis.statistics import or_none
from learner.scalars import stage_scalars
from policy.config import PolicySetup
from rollout.fleet import Fleet
from rollout.group_rollout import GroupRollout
from rollout.requests import GreedyRequest

log = logging.getLogger(__name__)

FIRST_GROUP_ID = 10**9
"""First id of evaluation groups, beyond the ids of all training groups."""

CHEAPEST_REPEATS = 5
"""Number of runs of the cheapest configuration on each sample, which decide what is feasible."""

STAGES = (
    *("copy", "vision_global", "image_feature", "language_feature", "stage1", "vision_crops"),
    *("projector", "embed", "block", "stage2", "head", "decode", "other"),
)
"""Stages of an episode in the order in which they run; `other` is the sum of all that have other
names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedySweep:
    """Results of a greedy sweep.

    Attributes:
        budgets_ms: K budgets, ascending.
        price: price of time of all episodes.
        scores: answer scores [S, K].
        latencies_ms: latencies [S, K], in calibrated ms like the budgets.
        device_budgets_ms: the budgets in ms of the device when the episode ran, [S, K].
        device_ms: the latencies as the device clock measured them, [S, K].
        wall_ms: the same on the wall clock, [S, K].
        cheapest_ms: latencies of the cheapest configuration on each sample, [S, R], calibrated ms.
        actions: choice indices [S, K, 4].
        answers: decoded answers [S, K].
        stages_ms: time of each of `STAGES` as the device clock measured it, [S, K, N].
        indices: S places in the split: those requested, except that unusable samples were replaced.
        tasks: S task names.
        sample_ids: S ids.
    """

    budgets_ms: np.ndarray
    price: float = FREE
    scores: np.ndarray
    latencies_ms: np.ndarray
    device_budgets_ms: np.ndarray
    device_ms: np.ndarray
    wall_ms: np.ndarray
    cheapest_ms: np.ndarray
    actions: np.ndarray
    answers: np.ndarray
    stages_ms: np.ndarray
    indices: tuple[int, ...]
    tasks: tuple[str, ...]
    sample_ids: tuple[str, ...]

    @property
    def violations(self) -> np.ndarray:
        """Whether each episode exceeded its budget: bool [S, K]."""
        return is_violation(self.latencies_ms, self.budgets_ms)

    @property
    def feasible(self) -> np.ndarray:
        """Whether the cheapest configuration meets each budget on each sample: bool [S, K]."""
        return np.median(self.cheapest_ms, axis=1)[:, None] <= self.budgets_ms

    @property
    def violation_rate(self) -> float:
        """Share of feasible episodes over budget; NaN if none is feasible."""
        return float(violation_rate(self.violations, self.feasible))

    @property
    def in_budget_accuracy(self) -> float:
        """Mean score, counted only within budget."""
        return float(self._inside_SK.mean())

    @property
    def _inside_SK(self) -> np.ndarray:
        return score_within_budget(self.scores, self.latencies_ms, self.budgets_ms)

    def scalars(self, cost_per_ms: float = 0.0) -> dict[str, float]:
        """Overall scalars, and accuracy, violations and infeasible share at each budget.

        `cost_per_ms` is what a millisecond costs at the sweep's price, in right answers.
        """
        at_fixed_cost = budget_reward(
            self.scores,
            self.latencies_ms,
            self.budgets_ms,
            violation_cost=FIXED_VIOLATION_COST,
            feasible=self.feasible,
            cost_per_ms=cost_per_ms,
        )
        scalars = {
            "at_a_glance/accuracy_held_out": self.in_budget_accuracy,
            "at_a_glance/reward_held_out": float(at_fixed_cost.total.mean()),
            "at_a_glance/violation_held_out": self.violation_rate,
            "at_a_glance/device_time_held_out_ms": float(self.latencies_ms.mean()),
            "evaluation/score": float(self.scores.mean()),
            "evaluation/infeasible": float(1 - self.feasible.mean()),
        }
        by_budget = {
            "accuracy": self._inside_SK.mean(0),
            "violation": violation_rate(self.violations, self.feasible, axis=0),
            "infeasible": 1 - self.feasible.mean(0),
        }
        for name, values_K in by_budget.items():
            for budget_ms, value in zip(self.budgets_ms, values_K, strict=True):
                scalars[f"evaluation_{name}/budget_{budget_ms:.0f}_ms"] = float(value)
        return scalars

    @staticmethod
    def joined(parts: Sequence[GreedySweep]) -> GreedySweep:
        """Concatenates sweeps with the same budgets and different samples."""
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ARRAYS_BY_SAMPLE
        }
        return GreedySweep(
            budgets_ms=parts[0].budgets_ms,
            price=parts[0].price,
            **arrays,
            indices=tuple(index for part in parts for index in part.indices),
            tasks=tuple(task for part in parts for task in part.tasks),
            sample_ids=tuple(name for part in parts for name in part.sample_ids),
        )

    def rows(self, rows: Sequence[int]) -> GreedySweep:
        """Some of the samples."""
        arrays = {name: getattr(self, name)[list(rows)] for name in ARRAYS_BY_SAMPLE}
        return GreedySweep(
            budgets_ms=self.budgets_ms,
            price=self.price,
            **arrays,
            indices=tuple(self.indices[row] for row in rows),
            tasks=tuple(self.tasks[row] for row in rows),
            sample_ids=tuple(self.sample_ids[row] for row in rows),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "budgets_ms": self.budgets_ms.tolist(),
            "price": self.price,
            "in_budget_accuracy": self._inside_SK.mean(0).tolist(),
            "violation": or_none(violation_rate(self.violations, self.feasible, axis=0)),
            "infeasible": (1 - self.feasible.mean(0)).tolist(),
            **{name: getattr(self, name).tolist() for name in ARRAYS_BY_SAMPLE},
            "stages_ms": self.stages_ms.round(3).tolist(),
            "stages": list(STAGES),
            "indices": list(self.indices),
            "tasks": list(self.tasks),
            "sample_ids": list(self.sample_ids),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GreedySweep:
        """Reads what `to_json` wrote; raises KeyError or ValueError for anything else."""
        return cls(
            budgets_ms=np.array(data["budgets_ms"], np.float64),
            price=float(data["price"]),
            **{name: np.array(data[name]) for name in ARRAYS_BY_SAMPLE},
            indices=tuple(data["indices"]),
            tasks=tuple(data["tasks"]),
            sample_ids=tuple(data["sample_ids"]),
        )


ARRAYS_BY_SAMPLE = (
    *("scores", "latencies_ms", "device_budgets_ms", "device_ms", "wall_ms", "cheapest_ms"),
    *("actions", "answers", "stages_ms"),
)


def greedy_sweep(
    fleet: Fleet[Any],
    setup: PolicySetup,
    weights: Any,
    *,
    split: str,
    indices: Sequence[int],
    budgets_ms: Sequence[float],
    price: float = FREE,
) -> GreedySweep:
    """Runs the samples at these places at every budget, greedily, one episode at a time per device.

    The cheapest configuration also runs on each sample, to determine what is feasible.
    """
    places = {"split": split, "indices": indices, "budgets_ms": budgets_ms}
    return greedy_sweeps(fleet, setup, weights, **places, prices=(price,))[0]


def greedy_sweeps(
    fleet: Fleet[Any],
    setup: PolicySetup,
    weights: Any,
    *,
    split: str,
    indices: Sequence[int],
    budgets_ms: Sequence[float],
    prices: Sequence[float],
) -> list[GreedySweep]:
    """One sweep for each price, over the same samples; what is feasible is measured once."""
    terms = [(budget_ms, price) for budget_ms in budgets_ms for price in prices]
    requests = [
        GreedyRequest(
            group_id=FIRST_GROUP_ID + s * len(terms) + t,
            split=split,
            index=index,
            budget_ms=float(budget_ms),
            price=price,
        )
        for s, index in enumerate(indices)
        for t, (budget_ms, price) in enumerate(terms)
    ]
    groups = fleet.evaluate(requests, setup, weights)
    used = [group.index for group in groups[:: len(terms)]]
    cheapest_NR = fleet.cheapest_ms(split, used, CHEAPEST_REPEATS, setup.calibration)
    sweeps = []
    for number, price in enumerate(prices):
        own = groups[number :: len(prices)]
        sweep = from_groups(own, np.asarray(budgets_ms, dtype=np.float64), cheapest_NR, price)
        is_whole = [bool(np.isfinite(row).all()) for row in cheapest_NR]
        sweeps.append(sweep.rows(usable(sweep.sample_ids, is_whole)))
    return sweeps


def usable(sample_ids: Sequence[str], is_whole_S: Sequence[bool]) -> list[int]:
    """The rows of samples on which everything could be measured; others are named in the log.

    Raises:
        ValueError: there is none.
    """
    for name in (n for n, is_whole in zip(sample_ids, is_whole_S, strict=True) if not is_whole):
        log.warning("sample %s could not be measured completely: it is left out", name)
    if not any(is_whole_S):
        raise ValueError(
            f"none of {len(sample_ids)} samples could be measured: the warnings before this say why"
        )
    return [row for row, is_whole in enumerate(is_whole_S) if is_whole]


def from_groups(
    groups: Sequence[GroupRollout],
    budgets_ms: np.ndarray,
    cheapest_SR: np.ndarray,
    price: float = FREE,
) -> GreedySweep:
    """Arranges single episodes, which are ordered by sample and then by budget."""
    shape = (-1, len(budgets_ms))

    def arranged(values: Iterable[float]) -> np.ndarray:
        return np.array(list(values), dtype=np.float64).reshape(shape)

    return GreedySweep(
        budgets_ms=budgets_ms,
        price=price,
        scores=arranged(g.scores[0] for g in groups),
        latencies_ms=arranged(g.latencies_ms[0] for g in groups),
        device_budgets_ms=arranged(g.device_budget_ms for g in groups),
        device_ms=arranged(g.device_ms[0] for g in groups),
        wall_ms=arranged(g.wall_ms[0] for g in groups),
        cheapest_ms=cheapest_SR,
        actions=np.array([g.actions[0] for g in groups]).reshape(*shape, len(HEADS)),
        answers=np.array([g.answers[0] for g in groups]).reshape(shape),
        stages_ms=np.array([stage_times(g) for g in groups]).reshape(*shape, len(STAGES)),
        indices=tuple(g.index for g in groups[:: len(budgets_ms)]),
        tasks=tuple(g.task for g in groups[:: len(budgets_ms)]),
        sample_ids=tuple(g.sample_id for g in groups[:: len(budgets_ms)]),
    )


def stage_times(group: GroupRollout) -> list[float]:
    """Milliseconds of each of `STAGES` in a single episode."""
    measured = {
        name.removeprefix("stage/").removesuffix("_ms"): elapsed_ms
        for name, elapsed_ms in stage_scalars([group]).items()
    }
    known = [measured.pop(name, 0.0) for name in STAGES[:-1]]
    return [*known, sum(measured.values())]

"""Rewards: pure functions of score, latency, budget and knobs.

Shapes: N episodes; every argument may be a number or an array [N].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from envs.prices import FREE
from envs.spec import Knobs

Array = NDArray[np.float64]


OVERSHOOT_COST = 0.5
"""Cost of taking twice the budget, or more, in the default reward."""


FIXED_VIOLATION_COST = 1.0
"""Cost of a violation in curves that must not move with lambda: that of one right answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward in two parts, whose advantages are computed separately.

    Attributes:
        score: the part from the answer, [N].
        constraint: the part from latency and cost, [N].
        components: all terms with their signs, [N] each.
    """

    score: Array
    constraint: Array
    components: Mapping[str, Array]

    @property
    def total(self) -> Array:
        """The reward itself, [N]."""
        return self.score + self.constraint


def is_violation(latency_ms: ArrayLike, budget_ms: ArrayLike) -> NDArray[np.bool_]:
    """Whether a latency exceeds its budget: bool, of the common shape."""
    return np.asarray(np.asarray(latency_ms) > np.asarray(budget_ms))


def violation_rate(
    violations: ArrayLike, feasible: ArrayLike, axis: int | None = None
) -> NDArray[np.float64]:
    """The share of feasible episodes that exceed their budget; NaN where none is feasible.

    Infeasible ones exceed it under every policy and say nothing about this one.
    """
    counted = np.asarray(np.broadcast_to(feasible, np.shape(violations)), np.float64)
    over, total = (np.asarray(violations) * counted).sum(axis), counted.sum(axis)
    return np.divide(over, total, out=np.full(np.shape(total), np.nan), where=total > 0)


def score_within_budget(score: ArrayLike, latency_ms: ArrayLike, budget_ms: ArrayLike) -> Array:
    """A score that counts only within the budget; its mean is the accuracy within budget."""
    return np.asarray(score, np.float64) * ~is_violation(latency_ms, budget_ms)


def budget_reward(
    score: ArrayLike,
    latency_ms: ArrayLike,
    budget_ms: ArrayLike,
    *,
    violation_cost: ArrayLike,
    feasible: ArrayLike = True,
    cost_per_ms: ArrayLike = 0.0,
) -> Reward:
    """The default reward, in right answers.

    score - lambda * 1[latency > budget] - 0.5 * clip(latency / budget - 1, 0, 1)
    - cost per ms * latency

    Where no configuration fits, only the last two terms are left, so that the fastest answer earns
    most.

    Args:
        score: of the answer.
        latency_ms: of the answer.
        budget_ms: its latency budget.
        violation_cost: lambda.
        feasible: whether the cheapest configuration meets the budget on the sample.
        cost_per_ms: price of time / latency of the full configuration in ms.
    """
    feasible = np.asarray(feasible, dtype=bool)
    score = np.asarray(score, dtype=np.float64) * feasible
    overshoot: Array = np.asarray(latency_ms, np.float64) / np.asarray(budget_ms, np.float64) - 1
    violation: Array = -np.asarray(violation_cost) * (
        is_violation(latency_ms, budget_ms) & feasible
    )
    excess: Array = -OVERSHOOT_COST * np.clip(overshoot, 0, 1)
    time: Array = -np.asarray(cost_per_ms) * np.asarray(latency_ms, np.float64)
    return Reward(
        score=score,
        constraint=violation + excess + time,
        components={"score": score, "violation": violation, "excess": excess, "time": time},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedOutcome:
    """What is expected of an episode whose latency is uncertain; the mean of `budget_reward`.

    Attributes:
        score: expected score that counts: that of feasible episodes.
        violation: probability that a feasible budget is violated.
        overshoot: expected clip(latency / budget - 1, 0, 1).
        ratio: expected latency / budget.
    """

    score: Array
    violation: Array
    overshoot: Array
    ratio: Array

    @classmethod
    def of(
        cls,
        score: ArrayLike,
        log_ratio: ArrayLike,
        spread: float,
        *,
        cheapest_log_ratio: ArrayLike,
    ) -> ExpectedOutcome:
        """From the distribution of log(latency / budget), which is normal around `log_ratio`.

        A sample that is slower than expected is so at every configuration: the cheapest one has the
        same error, around `cheapest_log_ratio`. So a configuration violates a feasible budget with
        the probability that is left between the two.

        Args:
            score: expected score.
            log_ratio: mean of log(latency / budget).
            spread: standard deviation of log latencies; at 0 they are certain.
            cheapest_log_ratio: the same mean for the cheapest configuration on the sample, which
                decides what is feasible.
        """
        mean, cheapest = (np.asarray(x, np.float64) for x in (log_ratio, cheapest_log_ratio))
        if spread > 0:
            meets, feasible = ndtr(-mean / spread), ndtr(-cheapest / spread)
        else:  # a latency that equals its budget is no violation
            meets, feasible = (np.asarray(x <= 0, np.float64) for x in (mean, cheapest))
        spread = max(spread, 1e-9)
        overshoot = _mean_above(0.0, mean, spread) - _mean_above(np.log(2.0), mean, spread)
        return cls(
            score=np.asarray(score) * feasible,
            violation=np.maximum(0.0, feasible - meets),
            overshoot=overshoot,
            ratio=np.exp(mean + spread**2 / 2),
        )

    def reward(self, violation_cost: ArrayLike, cost_of_budget: ArrayLike = 0.0) -> Array:
        """The expected reward.

        Args:
            violation_cost: lambda.
            cost_of_budget: what the time of the whole budget costs: cost per ms * budget in ms.
        """
        return np.asarray(
            self.score
            - np.asarray(violation_cost) * self.violation
            - OVERSHOOT_COST * self.overshoot
            - np.asarray(cost_of_budget) * self.ratio
        )


def _mean_above(log_limit: float, mean: Array, spread: float) -> Array:
    """E[max(0, e^x - e^log_limit)] for x normal, as in the Black-Scholes formula."""
    distance = (mean - log_limit) / spread
    above = np.exp(mean + spread**2 / 2) * ndtr(distance + spread)
    return above - np.exp(log_limit) * ndtr(distance)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceWeights:
    """Weights of the reference reward."""

    alpha: float = 1.0
    beta: float = 0.5
    gamma: float = 10.0
    delta: float = 0.1
    epsilon: float = 0.05


def reference_reward(
    score: ArrayLike,
    latency_ms: ArrayLike,
    budget_ms: ArrayLike,
    *,
    max_crops: ArrayLike,
    top_k: ArrayLike,
    num_blocks: ArrayLike,
    weights: ReferenceWeights | None = None,
) -> Reward:
    """The reward of this project's first version, kept for comparison, with r = latency / budget.

    alpha * score - beta * sigmoid(10 (r - 1)) - gamma * max(0, r - 1)^2 + delta * max(0, 1 - r)
    - epsilon * mean(max_crops / 12, top_k / 32, num_blocks / 16).
    """
    w = weights or ReferenceWeights()
    ratio = np.asarray(latency_ms, dtype=np.float64) / np.asarray(budget_ms)
    # Beyond an exponent of 700 the sigmoid is 0 or 1 in double precision.
    steepness = np.clip(-10 * (ratio - 1), -700, 700)
    complexity = (
        np.asarray(max_crops) / 12 + np.asarray(top_k) / 32 + np.asarray(num_blocks) / 16
    ) / 3
    components = {
        "score": w.alpha * np.asarray(score, dtype=np.float64),
        "violation": -w.beta / (1 + np.exp(steepness)),
        "excess": -w.gamma * np.maximum(0, ratio - 1) ** 2,
        "slack": w.delta * np.maximum(0, 1 - ratio),
        "complexity": -w.epsilon * complexity,
    }
    constraint = sum(value for name, value in components.items() if name != "score")
    return Reward(
        score=components["score"], constraint=np.asarray(constraint), components=components
    )


class RewardFunction(Protocol):
    """A reward, as environment and training loop use it."""

    def __call__(
        self,
        score: ArrayLike,
        latency_ms: ArrayLike,
        budget_ms: ArrayLike,
        knobs: Sequence[Knobs],
        feasible: ArrayLike = True,
        price: ArrayLike = FREE,
    ) -> Reward:
        """The reward of N episodes; `feasible` says whether any configuration fits."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReward:
    """`budget_reward` with a lambda, and what a price of time costs on a device.

    Attributes:
        violation_cost: lambda, or a function from budgets in ms to lambda.
        full_ms: latency of the full configuration in ms, whose time a price is for; it may be left
            out where no price is above zero.
    """

    violation_cost: float | Callable[[ArrayLike], Array] = 0.5
    full_ms: float | None = None

    def __call__(
        self,
        score: ArrayLike,
        latency_ms: ArrayLike,
        budget_ms: ArrayLike,
        knobs: Sequence[Knobs],
        feasible: ArrayLike = True,
        price: ArrayLike = FREE,
    ) -> Reward:
        """The default reward of N episodes; it does not depend on the knobs."""
        return budget_reward(
            score,
            latency_ms,
            budget_ms,
            violation_cost=self._lambda(budget_ms),
            feasible=feasible,
            cost_per_ms=self.cost_per_ms(price),
        )

    def expected(
        self, outcome: ExpectedOutcome, budget_ms: ArrayLike, price: ArrayLike = FREE
    ) -> Array:
        """The mean reward of outcomes that are uncertain."""
        cost_of_budget = self.cost_per_ms(price) * np.asarray(budget_ms, np.float64)
        return outcome.reward(self._lambda(budget_ms), cost_of_budget)

    def cost_per_ms(self, price: ArrayLike) -> Array:
        """What a millisecond costs at a price, in right answers.

        Raises:
            ValueError: there is a price, and `full_ms` is not known.
        """
        if self.full_ms is None:
            if np.any(np.asarray(price)):
                raise ValueError("a price of time needs full_ms: give the full latency in ms")
            return np.zeros_like(price, np.float64)
        return np.asarray(price, np.float64) / self.full_ms

    def _lambda(self, budget_ms: ArrayLike) -> ArrayLike:
        cost = self.violation_cost
        return cost(budget_ms) if callable(cost) else cost


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceReward:
    """`reference_reward` with its weights."""

    weights: ReferenceWeights = field(default_factory=ReferenceWeights)

    def __call__(
        self,
        score: ArrayLike,
        latency_ms: ArrayLike,
        budget_ms: ArrayLike,
        knobs: Sequence[Knobs],
        feasible: ArrayLike = True,
        price: ArrayLike = FREE,
    ) -> Reward:
        """The reference reward of N episodes; it asks neither what is feasible nor for a price."""
        return reference_reward(
            score,
            latency_ms,
            budget_ms,
            max_crops=np.array([k.tier.max_crops for k in knobs]),
            top_k=np.array([k.top_k for k in knobs]),
            num_blocks=np.array([k.num_blocks for k in knobs]),
            weights=self.weights,
        )

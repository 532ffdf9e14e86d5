"""Rewards: pure functions of score, latency, budget and knobs; and the rule that steers lambda.

Shapes: N episodes; every argument may be a number or an array [N].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.checks import check_within
from envs.spec import BudgetSampler, Knobs

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward in two parts that are kept apart until their advantages are known.

    Attributes:
        score: what the answer earned, [N].
        constraint: what latency and cost took away (or gave back), [N].
        components: every term, signed as it enters, [N] each.
    """

    score: Array
    constraint: Array
    components: Mapping[str, Array]

    @property
    def total(self) -> Array:
        """The reward itself, [N]."""
        return self.score + self.constraint


def budget_reward(
    score: ArrayLike, latency_ms: ArrayLike, budget_ms: ArrayLike, *, violation_cost: ArrayLike
) -> Reward:
    """The default: score - lambda * 1[latency > budget] - 0.5 * clip(latency / budget - 1, 0, 1).

    The last term orders configurations where nothing fits. `violation_cost` is lambda.
    """
    score = np.asarray(score, dtype=np.float64)
    overshoot: Array = np.asarray(latency_ms, np.float64) / np.asarray(budget_ms, np.float64) - 1
    violation: Array = -np.asarray(violation_cost) * (overshoot > 0).astype(np.float64)
    excess: Array = -0.5 * np.clip(overshoot, 0, 1)
    return Reward(
        score=score,
        constraint=violation + excess,
        components={"score": score, "violation": violation, "excess": excess},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceWeights:
    """Weights of the earlier implementation's reward."""

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
    """The earlier implementation's reward, with r = latency / budget.

    alpha * score - beta * sigmoid(10 (r - 1)) - gamma * max(0, r - 1)^2 + delta * max(0, 1 - r)
    - epsilon * mean(max_crops / 12, top_k / 32, num_blocks / 16).
    """
    w = weights or ReferenceWeights()
    ratio = np.asarray(latency_ms, dtype=np.float64) / np.asarray(budget_ms)
    # Beyond an exponent of 700 the sigmoid is 0 or 1 in double precision anyway.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PIDConfig:
    """Gains of the rule that steers lambda to a target violation rate.

    Attributes:
        target: violation rate to hold.
        kp: gain of the smoothed error.
        ki: gain of its sum over steps.
        kd: gain of its rise since the last step.
        smoothing: weight of the past in the running mean of the violation rate.
        initial: lambda before the first update.
        minimum: lambda never falls below it. Without a violation the score counts in full, so what
            a violation costs should be of the size of a score where only answers in time count.
        maximum: lambda never exceeds it.
        bins: the feasible budgets are cut into so many equal ranges, each with its own lambda. One
            lambda holds the rate on average, and leaves the tightest budgets above it.
    """

    target: float = 0.05
    kp: float = 1.0
    ki: float = 0.1
    kd: float = 0.0
    smoothing: float = 0.9
    initial: float = 0.5
    minimum: float = 0.0
    maximum: float = 5.0
    bins: int = 1

    def __post_init__(self) -> None:
        check_within(self, "target", "smoothing", low=0, high=1)
        check_within(self, "kp", "ki", "kd", low=0)
        check_within(self, "maximum", low=0)
        if not 0 <= self.minimum <= self.initial <= self.maximum or self.bins < 1:
            raise ValueError(
                f"lambda minimum {self.minimum}, initial {self.initial}, maximum {self.maximum}, "
                f"bins {self.bins}: give 0 <= minimum <= initial <= maximum and at least one bin"
            )


class PIDLambda:
    """Lambda, raised while the violation rate exceeds its target (Stooke et al. 2020)."""

    def __init__(self, config: PIDConfig | None = None) -> None:
        self.config = config or PIDConfig()
        self.value = self.config.initial
        self.integral = self.config.initial
        self.rate = self.config.target

    def update(self, violation_rate: float) -> float:
        """Takes one step's violation rate in [0, 1] and returns the new lambda."""
        c = self.config
        previous = self.rate
        self.rate = c.smoothing * self.rate + (1 - c.smoothing) * violation_rate
        error = self.rate - c.target
        self.integral = min(max(self.integral + c.ki * error, c.minimum), c.maximum)
        rise = max(self.rate - previous, 0.0)
        self.value = min(max(self.integral + c.kp * error + c.kd * rise, c.minimum), c.maximum)
        return self.value

    def state_dict(self) -> dict[str, float]:
        """Everything that an exact resume needs."""
        return {"value": self.value, "integral": self.integral, "rate": self.rate}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes over a saved state; raises ValueError naming what is missing."""
        missing = {"value", "integral", "rate"} - set(state)
        if missing:
            raise ValueError(f"the lambda state lacks {', '.join(sorted(missing))}")
        self.value, self.integral = float(state["value"]), float(state["integral"])
        self.rate = float(state["rate"])


class LambdaByBudget:
    """One `PIDLambda` for each range of budgets.

    Args:
        config: the rule, and how many ranges.
        budgets: the feasible ones are cut into ranges; infeasible ones share the first range's
            lambda and do not steer it, because every policy violates them.
    """

    def __init__(self, config: PIDConfig, budgets: BudgetSampler) -> None:
        self.budgets = budgets
        self.edges_ms = np.linspace(
            budgets.feasible_from_ms, budgets.range.high_ms, config.bins + 1
        )
        self.rules = [PIDLambda(config) for _ in range(config.bins)]

    def costs(self, budget_ms: ArrayLike) -> Array:
        """The lambda in force at each budget, of the same shape."""
        return np.array([rule.value for rule in self.rules])[self._bins(budget_ms)]

    def update(self, budget_ms: ArrayLike, violations: ArrayLike) -> None:
        """Takes one step's budgets [N] and violation rates [N]."""
        budget_ms, violations = np.asarray(budget_ms), np.asarray(violations, dtype=np.float64)
        bins = np.where(budget_ms >= self.budgets.feasible_from_ms, self._bins(budget_ms), -1)
        for index, rule in enumerate(self.rules):
            if (bins == index).any():
                rule.update(float(violations[bins == index].mean()))

    def scalars(self) -> dict[str, float]:
        """The mean lambda, and each range's."""
        scalars = {"reward/lambda": float(np.mean([rule.value for rule in self.rules]))}
        for rule, low, high in zip(self.rules, self.edges_ms, self.edges_ms[1:], strict=False):
            scalars[f"lambda/budget_{low:.0f}_to_{high:.0f}_ms"] = rule.value
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs."""
        return {"bins": [rule.state_dict() for rule in self.rules]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a saved state; raises ValueError if it has other ranges."""
        saved = state.get("bins", [])
        if len(saved) != len(self.rules):
            raise ValueError(
                f"the lambda state has {len(saved)} budget ranges, the configuration "
                f"{len(self.rules)}: resume with the same pid.bins, or use a new run-dir"
            )
        for rule, part in zip(self.rules, saved, strict=True):
            rule.load_state_dict(part)

    def _bins(self, budget_ms: ArrayLike) -> NDArray[np.int64]:
        inner_ms = self.edges_ms[1:-1]
        return np.searchsorted(inner_ms, np.asarray(budget_ms, np.float64), side="right")


class RewardFunction(Protocol):
    """What the environment and the training loop need of a reward."""

    def __call__(
        self,
        score: ArrayLike,
        latency_ms: ArrayLike,
        budget_ms: ArrayLike,
        knobs: Sequence[Knobs],
    ) -> Reward:
        """The reward of N episodes."""
        ...


@dataclass(slots=True, kw_only=True)
class BudgetReward:
    """`budget_reward` with the lambda in force; the training loop sets it at each step.

    `violation_cost` is lambda, or what gives it at each budget.
    """

    violation_cost: float | Callable[[ArrayLike], Array] = 0.5

    def __call__(
        self,
        score: ArrayLike,
        latency_ms: ArrayLike,
        budget_ms: ArrayLike,
        knobs: Sequence[Knobs],
    ) -> Reward:
        """The default reward of N episodes; it does not depend on the knobs."""
        cost = self.violation_cost
        cost = cost(budget_ms) if callable(cost) else cost
        return budget_reward(score, latency_ms, budget_ms, violation_cost=cost)


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
    ) -> Reward:
        """The earlier implementation's reward of N episodes."""
        return reference_reward(
            score,
            latency_ms,
            budget_ms,
            max_crops=np.array([k.tier.max_crops for k in knobs]),
            top_k=np.array([k.top_k for k in knobs]),
            num_blocks=np.array([k.num_blocks for k in knobs]),
            weights=self.weights,
        )

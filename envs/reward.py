"""Rewards: pure functions of score, latency, budget and knobs; and the rule that steers lambda.

Shapes: N episodes; every argument may be a number or an array [N].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.spec import Knobs

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
    score: ArrayLike, latency_ms: ArrayLike, budget_ms: ArrayLike, *, violation_cost: float
) -> Reward:
    """The default: score - lambda * 1[latency > budget] - 0.5 * clip(latency / budget - 1, 0, 1).

    The last term orders configurations where nothing fits. `violation_cost` is lambda.
    """
    score = np.asarray(score, dtype=np.float64)
    overshoot: Array = np.asarray(latency_ms, np.float64) / np.asarray(budget_ms, np.float64) - 1
    violation: Array = -violation_cost * (overshoot > 0).astype(np.float64)
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
        maximum: lambda never exceeds it.
    """

    target: float = 0.05
    kp: float = 1.0
    ki: float = 0.1
    kd: float = 0.0
    smoothing: float = 0.9
    initial: float = 0.5
    maximum: float = 5.0


class PIDLambda:
    """Lambda >= 0, raised while the violation rate exceeds its target (Stooke et al. 2020)."""

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
        self.integral = min(max(self.integral + c.ki * error, 0.0), c.maximum)
        rise = max(self.rate - previous, 0.0)
        self.value = min(max(self.integral + c.kp * error + c.kd * rise, 0.0), c.maximum)
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

    def __repr__(self) -> str:
        return f"PIDLambda({asdict(self.config)}, value={self.value:.3f})"


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
    """`budget_reward` with the lambda in force; the training loop sets it at each step."""

    violation_cost: float = 0.5

    def __call__(
        self,
        score: ArrayLike,
        latency_ms: ArrayLike,
        budget_ms: ArrayLike,
        knobs: Sequence[Knobs],
    ) -> Reward:
        """The default reward of N episodes; it does not depend on the knobs."""
        return budget_reward(score, latency_ms, budget_ms, violation_cost=self.violation_cost)


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

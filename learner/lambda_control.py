"""Lambda, the cost of a violation: raised by a PID rule while violations exceed their target.

Shapes: N episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envs.budgets import BudgetSampler
from envs.checks import check_within

STATE_NAMES = ("values", "integrals", "rates")


@dataclass(frozen=True, slots=True, kw_only=True)
class PIDConfig:
    """Gains of the rule that moves lambda until violations are at their target rate.

    Attributes:
        target: violation rate to hold.
        kp: gain of the smoothed error.
        ki: gain of its sum over steps.
        kd: gain of its rise since the last step.
        smoothing: weight of the past in the running mean of the violation rate.
        initial: lambda before the first update.
        minimum: lambda never falls below it. An answer over budget is worth nothing where only
            answers in time count, so a violation should cost at least about one score.
        maximum: lambda never exceeds it.
        bins: number of equal ranges into which the budgets are cut, each with a lambda of its own.
            A single lambda holds the target on average over all budgets, and leaves the
            tightest ones above it.
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


class LambdaControl:
    """Lambda by range of budgets, raised while violations exceed their target.

    The rule is the PID Lagrangian of Stooke et al. (2020), "Responsive Safety in Reinforcement
    Learning by PID Lagrangian Methods".

    Args:
        config: gains, bounds and number of ranges.
        budgets: their uniform part is cut into ranges; budgets below it belong to the first one.
    """

    def __init__(self, config: PIDConfig, budgets: BudgetSampler) -> None:
        self.config, self.budgets = config, budgets
        self.edges_ms = np.linspace(budgets.uniform_from_ms, budgets.range.high_ms, config.bins + 1)
        self.values = np.full(config.bins, config.initial)
        self.integrals = np.full(config.bins, config.initial)
        self.rates = np.full(config.bins, config.target)

    def violation_cost(self, budget_ms: ArrayLike) -> NDArray[np.float64]:
        """The lambda in force at each budget, of the same shape."""
        return self.values[self._bins(budget_ms)]

    def update(
        self, budget_ms: ArrayLike, violations: ArrayLike, feasible: ArrayLike = True
    ) -> None:
        """Takes one step's budgets in ms [N] and the violation rate in [0, 1] at each, [N].

        Infeasible ones do not move lambda, because every policy violates them.
        """
        violations_N = np.asarray(violations, dtype=np.float64)
        bins_N = np.where(feasible, self._bins(budget_ms), -1)
        for index in np.unique(bins_N[bins_N >= 0]):
            self._update_bin(index, float(violations_N[bins_N == index].mean()))

    def _update_bin(self, index: int, violation_rate: float) -> None:
        c, previous = self.config, self.rates[index]
        rate = c.smoothing * previous + (1 - c.smoothing) * violation_rate
        error, rise = rate - c.target, max(rate - previous, 0.0)
        integral = min(max(self.integrals[index] + c.ki * error, c.minimum), c.maximum)
        value = integral + c.kp * error + c.kd * rise
        self.rates[index], self.integrals[index] = rate, integral
        self.values[index] = min(max(value, c.minimum), c.maximum)

    def scalars(self) -> dict[str, float]:
        """The mean lambda, and each range's."""
        scalars = {"reward/lambda": float(self.values.mean())}
        for value, low, high in zip(self.values, self.edges_ms, self.edges_ms[1:], strict=False):
            scalars[f"lambda/budget_{low:.0f}_to_{high:.0f}_ms"] = float(value)
        return scalars

    def state_dict(self) -> dict[str, list[float]]:
        """Everything that an exact resume needs."""
        return {name: getattr(self, name).tolist() for name in STATE_NAMES}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a saved state; raises ValueError if it has other ranges, or lacks a part."""
        missing = sorted(set(STATE_NAMES) - set(state))
        if missing:
            raise ValueError(f"the lambda state lacks {', '.join(missing)}: use a new run-dir")
        if len(state["values"]) != self.config.bins:
            raise ValueError(
                f"the lambda state has {len(state['values'])} budget ranges, the configuration "
                f"{self.config.bins}: resume with the same pid.bins, or use a new run-dir"
            )
        for name in STATE_NAMES:
            setattr(self, name, np.array(state[name], dtype=np.float64))

    def _bins(self, budget_ms: ArrayLike) -> NDArray[np.int64]:
        inner_ms = self.edges_ms[1:-1]
        return np.searchsorted(inner_ms, np.asarray(budget_ms, np.float64), side="right")

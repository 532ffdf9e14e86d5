"""Latency budgets: what one may be, the range of a run's, and how one is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

SHORTEST_SHARE = 0.8
"""The smallest budget, as a share of the one from which budgets are uniform."""


def check_budget_ms(budget_ms: float) -> float:
    """Returns the budget as a float; raises ValueError unless it is a positive finite number."""
    budget_ms = float(budget_ms)
    if not math.isfinite(budget_ms) or budget_ms <= 0:
        raise ValueError(
            f"latency budget {budget_ms} ms: give a positive, finite number of milliseconds"
        )
    return budget_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRange:
    """The range of a run's budgets in ms, by which the controller normalises them to [0, 1]."""

    low_ms: float
    high_ms: float

    def __post_init__(self) -> None:
        check_budget_ms(self.low_ms)
        check_budget_ms(self.high_ms)
        if self.high_ms <= self.low_ms:
            raise ValueError(f"budget range {self.low_ms}..{self.high_ms} ms is empty: raise high")

    def normalise(self, budget_ms: float) -> float:
        """Maps the range to [0, 1]; budgets outside it are not clipped."""
        return (check_budget_ms(budget_ms) - self.low_ms) / (self.high_ms - self.low_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSampler:
    """Draws budgets: uniform where configurations differ, and a small share below.

    Whether a budget can be met depends on the sample as well, so feasibility is a property of
    episodes, not of budgets.

    Attributes:
        range: range of all budgets.
        uniform_from_ms: budgets are uniform from here to the largest one.
        share_below: probability of a budget below `uniform_from_ms`.
    """

    range: BudgetRange
    uniform_from_ms: float
    share_below: float = 0.0

    def __post_init__(self) -> None:
        if not self.range.low_ms <= self.uniform_from_ms < self.range.high_ms:
            raise ValueError(
                f"uniform_from_ms {self.uniform_from_ms} is outside the budget range "
                f"{self.range.low_ms}..{self.range.high_ms} ms"
            )
        if not 0 <= self.share_below < 1:
            raise ValueError(f"share_below {self.share_below} is not within 0..1")

    @classmethod
    def between(cls, low_ms: float, high_ms: float, *, share_below: float = 0.0) -> BudgetSampler:
        """Uniform from `low_ms` to `high_ms`; the share below reaches down to 0.8 times `low_ms`.

        Raises:
            ValueError: the range is empty, or the share is not within 0..1.
        """
        lowest_ms = SHORTEST_SHARE * low_ms if share_below else low_ms
        return cls(
            range=BudgetRange(low_ms=lowest_ms, high_ms=high_ms),
            uniform_from_ms=low_ms,
            share_below=share_below,
        )

    @classmethod
    def from_latencies(
        cls,
        cheapest_ms: ArrayLike,
        full_ms: ArrayLike,
        *,
        share_below: float = 0.05,
    ) -> BudgetSampler:
        """Derives the range from measured latencies of a device.

        Budgets are uniform from the cheapest configuration's median to the full one's 95th
        percentile: below it, nothing fits most samples; above it, everything does.
        """
        low_ms = float(np.median(np.asarray(cheapest_ms)))
        high_ms = max(float(np.quantile(np.asarray(full_ms), 0.95)), 1.2 * low_ms)
        return cls.between(low_ms, high_ms, share_below=share_below)

    def draw(self, rng: np.random.Generator) -> float:
        """One budget in ms."""
        low, high = self.uniform_from_ms, self.range.high_ms
        if rng.random() < self.share_below:
            low, high = self.range.low_ms, self.uniform_from_ms
        return float(rng.uniform(low, high))

    def evenly(self, count: int) -> np.ndarray:
        """The middles of equal parts of the uniform range, for means over it: [count]."""
        width_ms = (self.range.high_ms - self.uniform_from_ms) / count
        return self.uniform_from_ms + width_ms * (np.arange(count) + 0.5)

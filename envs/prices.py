"""The price of time: what one may be, the range of a run's, and how one is drawn.

A price is the worth of the time of ONE answer of the full configuration, in right answers. It has
no unit, so that the same price means the same on every device: at .02, an answer that takes half as
long as the full one costs .01 right answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FREE = 0.0
"""The price at which time within the budget costs nothing."""


def check_price(price: float) -> float:
    """Returns the price as a float; raises ValueError unless it is finite and not negative."""
    price = float(price)
    if not math.isfinite(price) or price < 0:
        raise ValueError(f"price of time {price}: give a finite number of at least 0")
    return price


def check_prices(prices: Sequence[float], name: str) -> None:
    """Raises ValueError unless there is at least one price, each usable, and they ascend."""
    usable = [price for price in prices if math.isfinite(price) and price >= 0]
    if not usable or list(prices) != sorted(set(usable)):
        raise ValueError(
            f"{name} are {tuple(prices)}: give finite numbers of at least 0 in ascending order"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRange:
    """The range of a run's prices above zero, whose logarithms the controller maps to [0, 1]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < check_price(self.low) < check_price(self.high):
            raise ValueError(f"price range {self.low}..{self.high}: give 0 < low < high")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSampler:
    """Draws prices: a share of them zero, the others log-uniform in the range.

    Attributes:
        range: range of the prices above zero.
        share_free: probability of the price zero.
    """

    range: PriceRange
    share_free: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.share_free <= 1:
            raise ValueError(f"share_free {self.share_free} is not within 0..1")

    def draw(self, rng: np.random.Generator) -> float:
        """One price."""
        if rng.random() < self.share_free:
            return FREE
        return float(np.exp(rng.uniform(np.log(self.range.low), np.log(self.range.high))))

    def draw_many(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Many prices at once: float64 [count]."""
        priced = np.exp(rng.uniform(np.log(self.range.low), np.log(self.range.high), count))
        return np.where(rng.random(count) < self.share_free, FREE, priced)

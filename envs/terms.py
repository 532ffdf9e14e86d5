"""The terms of a request: how long its answer may take, and what its time is worth."""

from __future__ import annotations

from dataclasses import dataclass

from envs.budgets import check_budget_ms
from envs.prices import FREE, check_price


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A deadline and a price; raises ValueError for values that are not usable.

    Attributes:
        budget_ms: latency budget in ms.
        price: price of time (see `envs.prices`).
    """

    budget_ms: float
    price: float = FREE

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget_ms", check_budget_ms(self.budget_ms))
        object.__setattr__(self, "price", check_price(self.price))

"""Configuration of the controller: its sizes and the ranges of its budgets and prices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from envs.budgets import BudgetRange, BudgetSampler
from envs.calibration import Calibration
from envs.prices import FREE, PriceRange, PriceSampler, check_price
from envs.spec import NUM_SIZES


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """Sizes of the controller and the run's ranges of budgets and prices.

    The defaults keep the two stages under 250K weights at d_model 2048.

    Attributes:
        d_model: width of the frozen model.
        image_dim: length of the image feature that stage 1 sees; 0 if it does not see the image.
        budget_low_ms: smallest budget of the run, ms.
        budget_high_ms: largest budget of the run, ms.
        sinusoid_scale: factor on the normalised budget before the sinusoids. At 1 the fastest one
            turns by one radian over the whole range, and policies that must change within a few
            milliseconds are learned slowly.
        projection_dim: width to which each wide input is projected.
        hidden_dim: width of each stage's hidden layer.
        price_low: smallest price of time above zero; None if the controller knows no prices.
        price_high: largest price of time; None if the controller knows no prices.
        default_price: price of requests that state none.
    """

    d_model: int
    budget_low_ms: float
    budget_high_ms: float
    sinusoid_scale: float = 100.0
    projection_dim: int = 32
    hidden_dim: int = 64
    image_dim: int = 0
    price_low: float | None = None
    price_high: float | None = None
    default_price: float = FREE

    def __post_init__(self) -> None:
        for name in ("d_model", "projection_dim", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"controller {name} is {getattr(self, name)}: give at least 1")
        if self.image_dim != 0 and self.image_dim <= NUM_SIZES + 1:
            raise ValueError(
                f"controller image_dim is {self.image_dim}: give 0, or the length of pooled "
                f"features, {NUM_SIZES} sizes and a flag"
            )
        if not self.sinusoid_scale > 0:
            raise ValueError(f"sinusoid_scale is {self.sinusoid_scale}: give a positive number")
        _ = self.budget_range, self.price_range
        if check_price(self.default_price) and self.price_range is None:
            raise ValueError(
                f"default_price is {self.default_price} for a controller without prices: give it "
                "price_low and price_high"
            )

    @classmethod
    def for_budgets(
        cls,
        d_model: int,
        image_dim: int,
        budgets: BudgetSampler,
        prices: PriceSampler | None = None,
        default_price: float = FREE,
    ) -> Self:
        """The configuration for a model's widths and a run's budgets and prices."""
        return cls(
            d_model=d_model,
            image_dim=image_dim,
            budget_low_ms=budgets.range.low_ms,
            budget_high_ms=budgets.range.high_ms,
            price_low=None if prices is None else prices.range.low,
            price_high=None if prices is None else prices.range.high,
            default_price=default_price,
        )

    @property
    def sees_image(self) -> bool:
        """Whether stage 1 sees the image, besides prompt and budget."""
        return self.image_dim > 0

    @property
    def budget_range(self) -> BudgetRange:
        """The range that budgets are normalised by; raises ValueError for an empty one."""
        return BudgetRange(low_ms=self.budget_low_ms, high_ms=self.budget_high_ms)

    @property
    def price_range(self) -> PriceRange | None:
        """The range of prices above zero; raises ValueError for an empty one."""
        if self.price_low is None and self.price_high is None:
            return None
        if self.price_low is None or self.price_high is None:
            raise ValueError("give both price_low and price_high, or neither")
        return PriceRange(low=self.price_low, high=self.price_high)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySetup:
    """Everything but the weights that a worker needs to build controller and environment.

    Attributes:
        controller: configuration of the controller.
        budgets: sampler of budgets.
        prices: sampler of prices of time; None if time within the budget is free.
        calibration: what their milliseconds mean, by which drift is followed; None if latencies
            are simulated and do not drift.
    """

    controller: ControllerConfig
    budgets: BudgetSampler
    prices: PriceSampler | None = None
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls,
        d_model: int,
        image_dim: int,
        budgets: BudgetSampler,
        calibration: Calibration | None = None,
        prices: PriceSampler | None = None,
        default_price: float = FREE,
    ) -> Self:
        """The setup for a model's widths and a run's budgets and prices."""
        return cls(
            controller=ControllerConfig.for_budgets(
                d_model, image_dim, budgets, prices, default_price
            ),
            budgets=budgets,
            prices=prices,
            calibration=calibration,
        )

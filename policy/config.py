"""Configuration of the controller: its sizes and the range of its budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from envs.budgets import BudgetRange, BudgetSampler
from envs.calibration import Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """Sizes of the controller and the run's budget range.

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
    """

    d_model: int
    budget_low_ms: float
    budget_high_ms: float
    sinusoid_scale: float = 100.0
    projection_dim: int = 32
    hidden_dim: int = 64
    image_dim: int = 0

    def __post_init__(self) -> None:
        for name in ("d_model", "projection_dim", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"controller {name} is {getattr(self, name)}: give at least 1")
        if self.image_dim < 0:
            raise ValueError(f"controller image_dim is {self.image_dim}: give 0 or more")
        if not self.sinusoid_scale > 0:
            raise ValueError(f"sinusoid_scale is {self.sinusoid_scale}: give a positive number")
        _ = self.budget_range

    @classmethod
    def for_budgets(cls, d_model: int, image_dim: int, budgets: BudgetSampler) -> Self:
        """The configuration for a model's widths and a run's budgets."""
        return cls(
            d_model=d_model,
            image_dim=image_dim,
            budget_low_ms=budgets.range.low_ms,
            budget_high_ms=budgets.range.high_ms,
        )

    @property
    def sees_image(self) -> bool:
        """Whether stage 1 sees the image, besides prompt and budget."""
        return self.image_dim > 0

    @property
    def budget_range(self) -> BudgetRange:
        """The range that budgets are normalised by; raises ValueError for an empty one."""
        return BudgetRange(low_ms=self.budget_low_ms, high_ms=self.budget_high_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySetup:
    """Everything but the weights that a worker needs to build controller and environment.

    Attributes:
        controller: configuration of the controller.
        budgets: sampler of budgets.
        calibration: what their milliseconds mean, by which drift is followed; None if latencies
            are simulated and do not drift.
    """

    controller: ControllerConfig
    budgets: BudgetSampler
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls,
        d_model: int,
        image_dim: int,
        budgets: BudgetSampler,
        calibration: Calibration | None = None,
    ) -> Self:
        """The setup for a model's widths and a run's budgets."""
        return cls(
            controller=ControllerConfig.for_budgets(d_model, image_dim, budgets),
            budgets=budgets,
            calibration=calibration,
        )

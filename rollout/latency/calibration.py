"""Latencies of one device, at one time, as those of another: what a profile and a controller need.

A clock drifts and devices differ. What the cheapest and the full configuration take on the same
held-out samples, measured on both, tells by how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

from envs.spec import BudgetRange, BudgetSampler
from policy.config import PolicySetup

CALIBRATION_SPLIT = "validation"


class Devices(Protocol):
    """A fleet, as far as a calibration needs it."""

    def end_latencies(self, split: str, num_samples: int) -> np.ndarray:
        """Latencies in ms of the cheapest and the full configuration: [R, N, 2], see `measure`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Latencies of the two extreme configurations, on given samples.

    Attributes:
        cheapest_ms: median of `CHEAPEST_KNOBS`.
        full_ms: median of `FULL_KNOBS`.
        scatter: standard deviation of the logarithm of a latency that is measured again.
        num_samples: how many of the validation split, from its first on.
    """

    cheapest_ms: float
    full_ms: float
    scatter: float
    num_samples: int

    def __post_init__(self) -> None:
        if not 0 < self.cheapest_ms < self.full_ms < math.inf:
            raise ValueError(
                f"the cheapest configuration takes {self.cheapest_ms} ms and the full one "
                f"{self.full_ms} ms: the device is too busy to be measured, try again"
            )

    @classmethod
    def of_latencies(cls, latencies_RN2: np.ndarray) -> Self:
        """From R measurements in ms of (cheapest, full) on N samples; 0 scatter from a single."""
        cheapest_ms, full_ms = np.median(latencies_RN2, axis=(0, 1)).tolist()
        repeats = len(latencies_RN2)
        variance = np.log(latencies_RN2).var(0, ddof=1).mean() if repeats > 1 else 0.0
        return cls(
            cheapest_ms=cheapest_ms,
            full_ms=full_ms,
            scatter=float(variance**0.5),
            num_samples=latencies_RN2.shape[1],
        )

    def convert(self, ms: ArrayLike, to: Calibration) -> np.ndarray:
        """Milliseconds of this calibration as those of another.

        By the line through both ends, but never as far down as zero.
        """
        slope = (to.full_ms - to.cheapest_ms) / (self.full_ms - self.cheapest_ms)
        line_ms = to.cheapest_ms + slope * (np.asarray(ms) - self.cheapest_ms)
        return np.maximum(line_ms, 0.01 * to.cheapest_ms)


@dataclass(frozen=True, slots=True, eq=False)
class EndLatencies:
    """What the devices take now, of the cheapest and the full configuration.

    Attributes:
        latencies_RN2: R times the first N samples of the validation split, in ms.
    """

    latencies_RN2: np.ndarray

    @classmethod
    def measure(cls, devices: Devices, num_samples: int) -> Self:
        """On all devices at once, each sample several times."""
        return cls(devices.end_latencies(CALIBRATION_SPLIT, num_samples))

    @property
    def calibration(self) -> Calibration:
        """Its medians and its scatter."""
        return Calibration.of_latencies(self.latencies_RN2)

    def budgets(self, infeasible_share: float) -> BudgetSampler:
        """The budgets that the devices span."""
        ends = self.latencies_RN2.reshape(-1, 2).T
        return BudgetSampler.from_latencies(*ends, infeasible_share=infeasible_share)

    def check_straddles(self, stated: BudgetRange) -> None:
        """Raises ValueError if no stated budget lies where configurations differ on the devices."""
        cheapest_ms = float(np.median(self.latencies_RN2[..., 0]))
        full_ms = float(np.quantile(self.latencies_RN2[..., 1], 0.95))
        if stated.low_ms >= full_ms or stated.high_ms <= cheapest_ms:
            raise ValueError(
                f"the stated budgets are {stated.low_ms:g}..{stated.high_ms:g} ms, and what was "
                f"measured goes from {cheapest_ms:.1f} ms (cheapest configuration, median) to "
                f"{full_ms:.1f} ms (full one, 95th percentile): no configuration would matter; "
                "state a range that overlaps it, or leave budget.low-ms and budget.high-ms out"
            )


def recalibrated(
    setup: PolicySetup, own: Calibration, now: EndLatencies, *, keeps_budgets: bool
) -> PolicySetup:
    """A controller on devices other than those, or at a time other than that, of its training.

    It sees every budget in the milliseconds of its own calibration. The budgets that count are
    those that the devices span now, unless the user had stated them.
    """
    low_ms, high_ms = setup.controller.budget_low_ms, setup.controller.budget_high_ms
    controller = replace(
        setup.controller,
        budget_low_ms=float(own.convert(low_ms, now.calibration)),
        budget_high_ms=float(own.convert(high_ms, now.calibration)),
    )
    budgets = setup.budgets if keeps_budgets else now.budgets(setup.budgets.infeasible_share)
    return PolicySetup(controller=controller, budgets=budgets)

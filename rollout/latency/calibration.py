"""Converts latencies between devices, and between times on one device.

Clocks drift and devices differ. The latencies of the cheapest and of the full configuration on the
same held-out samples, measured on both sides, show by how much.
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
    """The part of a fleet that a calibration needs."""

    def end_latencies(self, split: str, num_samples: int) -> np.ndarray:
        """Latencies in ms of the cheapest and the full configuration: [R, N, 2], see `measure`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Latencies of the cheapest and the full configuration on the calibration samples.

    Attributes:
        cheapest_ms: median latency of `CHEAPEST_KNOBS`.
        full_ms: median latency of `FULL_KNOBS`.
        scatter: standard deviation of the logarithm of repeated measurements.
        num_samples: number of samples, the first ones of the validation split.
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
        """From R measurements in ms of (cheapest, full) on N samples; scatter is 0 for R = 1."""
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
        """Converts milliseconds of this calibration to another one.

        The conversion is the line through both medians, kept above zero.
        """
        slope = (to.full_ms - to.cheapest_ms) / (self.full_ms - self.cheapest_ms)
        line_ms = to.cheapest_ms + slope * (np.asarray(ms) - self.cheapest_ms)
        return np.maximum(line_ms, 0.01 * to.cheapest_ms)


@dataclass(frozen=True, slots=True, eq=False)
class EndLatencies:
    """Present latencies of the cheapest and the full configuration on the devices.

    Attributes:
        latencies_RN2: R measurements of (cheapest, full) on N validation samples, in ms.
    """

    latencies_RN2: np.ndarray

    @classmethod
    def measure(cls, devices: Devices, num_samples: int) -> Self:
        """Measures on all devices at once, each sample several times."""
        return cls(devices.end_latencies(CALIBRATION_SPLIT, num_samples))

    @property
    def calibration(self) -> Calibration:
        """The medians and the scatter of the measurements."""
        return Calibration.of_latencies(self.latencies_RN2)

    def budgets(self, infeasible_share: float) -> BudgetSampler:
        """The budget range between the two configurations on these devices."""
        ends = self.latencies_RN2.reshape(-1, 2).T
        return BudgetSampler.from_latencies(*ends, infeasible_share=infeasible_share)

    def check_straddles(self, stated: BudgetRange) -> None:
        """Raises ValueError if the given budgets lie outside the range of measured latencies."""
        cheapest_ms = float(np.median(self.latencies_RN2[..., 0]))
        full_ms = float(np.quantile(self.latencies_RN2[..., 1], 0.95))
        if stated.low_ms >= full_ms or stated.high_ms <= cheapest_ms:
            raise ValueError(
                f"the given budgets are {stated.low_ms:g}..{stated.high_ms:g} ms, and measured "
                f"latencies range from {cheapest_ms:.1f} ms (cheapest configuration, median) to "
                f"{full_ms:.1f} ms (full one, 95th percentile), so the choice would not matter: "
                "give a range that overlaps, or leave budget.low-ms and budget.high-ms out"
            )


def recalibrated(
    setup: PolicySetup, own: Calibration, now: EndLatencies, *, keeps_budgets: bool
) -> PolicySetup:
    """The setup of a controller on other devices, or at another time, than in training.

    The controller sees every budget converted to the milliseconds of its own calibration. The
    budgets themselves are those that the devices span now, unless the user had given them.
    """
    low_ms, high_ms = setup.controller.budget_low_ms, setup.controller.budget_high_ms
    controller = replace(
        setup.controller,
        budget_low_ms=float(own.convert(low_ms, now.calibration)),
        budget_high_ms=float(own.convert(high_ms, now.calibration)),
    )
    budgets = setup.budgets if keeps_budgets else now.budgets(setup.budgets.infeasible_share)
    return PolicySetup(controller=controller, budgets=budgets)

"""Measures how fast the devices are, and from that the range of budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from envs.budgets import BudgetSampler
from envs.calibration import CALIBRATION_SPLIT, Calibration
from rollout.fleet import MeasuringFleet


@dataclass(frozen=True, slots=True, eq=False)
class ExtremeLatencies:
    """Present latencies of the cheapest and the full configuration on the devices.

    Attributes:
        latencies_RN2: R measurements of (cheapest, full) on N validation samples, in ms.
        clock: the clock that they are from.
    """

    latencies_RN2: np.ndarray
    clock: str = ""

    @classmethod
    def measure(cls, fleet: MeasuringFleet[Any], num_samples: int) -> Self:
        """Measures on all devices at once, each sample several times."""
        return cls(fleet.extreme_latencies(CALIBRATION_SPLIT, num_samples), fleet.clock_name)

    @property
    def calibration(self) -> Calibration:
        """The medians and the scatter of the measurements."""
        return Calibration.of_latencies(self.latencies_RN2, self.clock)

    def budgets(self, share_below: float) -> BudgetSampler:
        """The budget range between the two configurations on these devices."""
        return BudgetSampler.from_latencies(
            *self.latencies_RN2.reshape(-1, 2).T, share_below=share_below
        )

    def check_straddles(self, stated: BudgetSampler) -> None:
        """Raises ValueError if the given budgets lie outside the range of measured latencies."""
        cheapest_ms = float(np.median(self.latencies_RN2[..., 0]))
        full_ms = float(np.quantile(self.latencies_RN2[..., 1], 0.95))
        low_ms, high_ms = stated.uniform_from_ms, stated.range.high_ms
        if low_ms >= full_ms or high_ms <= cheapest_ms:
            raise ValueError(
                f"the given budgets are {low_ms:g}..{high_ms:g} ms, and measured "
                f"latencies range from {cheapest_ms:.1f} ms (cheapest configuration, median) to "
                f"{full_ms:.1f} ms (full one, 95th percentile), so the choice would not matter: "
                "give a range that overlaps, or leave budget.low-ms and budget.high-ms out"
            )

"""Calibrated milliseconds, in which a run states its budgets and latencies.

Clocks drift and devices differ. A calibration holds what the cheapest and the full configuration
took on the same samples when a run, or a profile, began. Milliseconds of that moment can be
converted to those of another one, or of another device, by measuring both configurations there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

CALIBRATION_SPLIT = "validation"

PROBE_SAMPLES = 4
"""Number of calibration samples (the first ones) on which a device's present speed is probed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Latencies of the cheapest and the full configuration on the calibration samples.

    Attributes:
        cheapest_ms: median latency of `CHEAPEST_KNOBS`.
        full_ms: median latency of `FULL_KNOBS`.
        scatter: standard deviation of the logarithm of repeated measurements.
        num_samples: number of samples, the first ones of the validation split.
        probes_ms: median latencies of (cheapest, full) on each of the first samples.
        clock: the clock that measured them.
    """

    cheapest_ms: float
    full_ms: float
    scatter: float
    num_samples: int
    probes_ms: tuple[tuple[float, float], ...] = ()
    clock: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.cheapest_ms < self.full_ms < math.inf:
            raise ValueError(
                f"the cheapest configuration takes {self.cheapest_ms} ms and the full one "
                f"{self.full_ms} ms: the device is too busy to be measured, try again"
            )

    @classmethod
    def of_latencies(cls, latencies_RN2: np.ndarray, clock: str = "") -> Self:
        """From R measurements in ms of (cheapest, full) on N samples; scatter is 0 for R = 1."""
        cheapest_ms, full_ms = np.median(latencies_RN2, axis=(0, 1)).tolist()
        repeats = len(latencies_RN2)
        variance = np.log(latencies_RN2).var(0, ddof=1).mean() if repeats > 1 else 0.0
        probes_P2 = np.median(latencies_RN2[:, :PROBE_SAMPLES], axis=0)
        return cls(
            cheapest_ms=cheapest_ms,
            full_ms=full_ms,
            scatter=float(variance**0.5),
            num_samples=latencies_RN2.shape[1],
            probes_ms=tuple((float(cheapest), float(full)) for cheapest, full in probes_P2),
            clock=clock,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From the plain JSON values of `dataclasses.asdict`."""
        probes = tuple((cheapest, full) for cheapest, full in data["probes_ms"])
        return cls(**{**data, "probes_ms": probes})

    def convert(self, ms: ArrayLike, to: Calibration) -> np.ndarray:
        """Converts milliseconds of this calibration to another one.

        The conversion is the line through both medians, kept above zero.
        """
        slope = (to.full_ms - to.cheapest_ms) / (self.full_ms - self.cheapest_ms)
        line_ms = to.cheapest_ms + slope * (np.asarray(ms) - self.cheapest_ms)
        return np.maximum(line_ms, 0.01 * to.cheapest_ms)

    def slowed(self, cheapest: float, full: float) -> Calibration:
        """The calibration of devices on which both configurations take longer by these factors.

        Factors that would reverse their order are replaced by their geometric mean.
        """
        if cheapest * self.cheapest_ms >= full * self.full_ms:
            cheapest = full = (cheapest * full) ** 0.5
        return replace(self, cheapest_ms=cheapest * self.cheapest_ms, full_ms=full * self.full_ms)


class PresentTime(Protocol):
    """A device's present milliseconds, converted from and to calibrated ones."""

    def to_present(self, ms: float) -> float:
        """Converts calibrated milliseconds to those of the device now."""
        ...

    def to_calibrated(self, ms: float) -> float:
        """The inverse of `to_present`."""
        ...


class SteadyTime:
    """The present time of a device that never drifts: the identity, bit for bit."""

    def to_present(self, ms: float) -> float:
        """`ms` itself."""
        return ms

    def to_calibrated(self, ms: float) -> float:
        """`ms` itself."""
        return ms

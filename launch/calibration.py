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

from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, BudgetRange, BudgetSampler
from rollout.latency.profile_table import ProfileTable
from rollout.worker import PolicySetup

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


def sample_place(sample_id: str) -> tuple[str, int]:
    """Split and index of a sample, from an id such as digits/validation/12."""
    parts = sample_id.rsplit("/", 2)
    if len(parts) != 3 or not parts[2].isdigit():
        raise ValueError(
            f"sample {sample_id!r} of the profile names no split and index: take a profile that "
            "launch/profile.py wrote on this run's tasks"
        )
    return parts[1], int(parts[2])


def calibrated(table: ProfileTable, now: EndLatencies) -> tuple[ProfileTable, float]:
    """The profile with the latencies that these devices would have measured, but steady.

    Returns:
        The profile, and by how much these devices scatter more than it: the standard deviation of
        the logarithm of a factor that each latency still lacks.

    Raises:
        ValueError: if the profile lacks the measured samples or configurations.
    """
    table, to = table.steadied(), now.calibration
    places = [sample_place(sample_id) for sample_id in table.sample_ids]
    wanted = [(CALIBRATION_SPLIT, index) for index in range(to.num_samples)]
    ends = (CHEAPEST_KNOBS, FULL_KNOBS)
    if not set(wanted) <= set(places) or not set(ends) <= set(table.configurations):
        raise ValueError(
            f"the profile has {len(set(wanted) & set(places))} of the first {len(wanted)} "
            f"{CALIBRATION_SPLIT} samples: to put it on this device's clock, profile them all, "
            f"with {ends[0]} and {ends[1]} among the configurations"
        )
    rows, columns = [places.index(p) for p in wanted], [table.column(knobs) for knobs in ends]
    profiled_N2 = table.latencies_ms[np.ix_(rows, columns)].astype(np.float64)
    own = Calibration.of_latencies(profiled_N2[None])
    mean_N2 = np.log(now.latencies_RN2).mean(0)
    apart = (np.log(own.convert(profiled_N2, to)) - mean_N2).var(0).mean()
    own_variance = max(0.0, apart - to.scatter**2 / len(now.latencies_RN2))
    added = max(0.0, to.scatter**2 - own_variance) ** 0.5
    latencies_ms = own.convert(table.latencies_ms, to).astype(np.float32)
    return replace(table, latencies_ms=latencies_ms), float(added)


def scattered(table: ProfileTable, scatter: float, seed: int = 0) -> ProfileTable:
    """The profile with log-normal noise of this standard deviation."""
    noise = np.random.default_rng(seed).normal(0.0, scatter, table.latencies_ms.shape)
    return replace(table, latencies_ms=(table.latencies_ms * np.exp(noise)).astype(np.float32))

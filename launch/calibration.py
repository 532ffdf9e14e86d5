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

from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, BudgetSampler
from rollout.latency.profile_table import ProfileTable
from rollout.worker import PolicySetup

CALIBRATION_SPLIT = "validation"


class Devices(Protocol):
    """A fleet, as far as a calibration needs it."""

    def end_latencies(self, split: str, num_samples: int) -> np.ndarray:
        """Latencies in ms of the cheapest and the full configuration, on every device: [N, 2]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Median latencies in ms of the two extreme configurations, on given samples.

    Attributes:
        cheapest_ms: of `CHEAPEST_KNOBS`.
        full_ms: of `FULL_KNOBS`.
        num_samples: how many of the validation split, from its first on.
    """

    cheapest_ms: float
    full_ms: float
    num_samples: int

    def __post_init__(self) -> None:
        if not 0 < self.cheapest_ms < self.full_ms < math.inf:
            raise ValueError(
                f"the cheapest configuration takes {self.cheapest_ms} ms and the full one "
                f"{self.full_ms} ms: the device is too busy to be measured, try again"
            )

    @classmethod
    def of_latencies(cls, latencies_N2: np.ndarray, num_samples: int) -> Self:
        """From latencies in ms of (cheapest, full), N of them on `num_samples` samples."""
        cheapest_ms, full_ms = np.median(latencies_N2, axis=0).tolist()
        return cls(cheapest_ms=cheapest_ms, full_ms=full_ms, num_samples=num_samples)

    def convert(self, ms: ArrayLike, to: Calibration) -> np.ndarray:
        """Milliseconds of this calibration as those of another, by the line through both ends."""
        slope = (to.full_ms - to.cheapest_ms) / (self.full_ms - self.cheapest_ms)
        return to.cheapest_ms + slope * (np.asarray(ms) - self.cheapest_ms)


def measure(
    devices: Devices, num_samples: int, infeasible_share: float
) -> tuple[Calibration, BudgetSampler]:
    """The devices as they are now, and the budgets that they span."""
    latencies_N2 = devices.end_latencies(CALIBRATION_SPLIT, num_samples)
    budgets = BudgetSampler.from_latencies(*latencies_N2.T, infeasible_share=infeasible_share)
    return Calibration.of_latencies(latencies_N2, num_samples), budgets


def recalibrated(
    setup: PolicySetup, own: Calibration, devices: Devices, *, keeps_budgets: bool
) -> tuple[PolicySetup, Calibration]:
    """A controller on devices other than those, or at a time other than that, of its training.

    It sees every budget in the milliseconds of its own calibration. The budgets that count are
    those that the devices span now, unless the user had stated them.
    """
    now, spanned = measure(devices, own.num_samples, setup.budgets.infeasible_share)
    low_ms, high_ms = setup.controller.budget_low_ms, setup.controller.budget_high_ms
    controller = replace(
        setup.controller,
        budget_low_ms=float(own.convert(low_ms, now)),
        budget_high_ms=float(own.convert(high_ms, now)),
    )
    budgets = setup.budgets if keeps_budgets else spanned
    return PolicySetup(controller=controller, budgets=budgets), now


def sample_place(sample_id: str) -> tuple[str, int]:
    """Split and index of a sample, from an id such as digits/validation/12."""
    parts = sample_id.rsplit("/", 2)
    if len(parts) != 3 or not parts[2].isdigit():
        raise ValueError(
            f"sample {sample_id!r} of the profile names no split and index: take a profile that "
            "launch/profile.py wrote on this run's tasks"
        )
    return parts[1], int(parts[2])


def calibrated(table: ProfileTable, to: Calibration) -> ProfileTable:
    """The profile with the latencies that the calibration's device would have measured.

    Raises:
        ValueError: if the profile lacks the calibration's samples or configurations.
    """
    wanted = {(CALIBRATION_SPLIT, index) for index in range(to.num_samples)}
    places = [sample_place(sample_id) for sample_id in table.sample_ids]
    rows = [row for row, place in enumerate(places) if place in wanted]
    ends = (CHEAPEST_KNOBS, FULL_KNOBS)
    if len(rows) < len(wanted) or not set(ends) <= set(table.configurations):
        raise ValueError(
            f"the profile has {len(rows)} of the first {len(wanted)} {CALIBRATION_SPLIT} samples: "
            "to put it on this device's clock, profile them all, with "
            f"{ends[0]} and {ends[1]} among the configurations"
        )
    latencies_N2 = table.latencies_ms[np.ix_(rows, [table.column(knobs) for knobs in ends])]
    own = Calibration.of_latencies(latencies_N2, to.num_samples)
    return replace(table, latencies_ms=own.convert(table.latencies_ms, to).astype(np.float32))

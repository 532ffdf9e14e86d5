"""Converts a profile to the clock of other devices, or of another time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS
from rollout.latency.calibration import CALIBRATION_SPLIT, Calibration, EndLatencies
from rollout.profiling.profile_table import ProfileTable


def sample_place(sample_id: str) -> tuple[str, int]:
    """Split and index of a sample, from an id such as digits/validation/12."""
    parts = sample_id.rsplit("/", 2)
    if len(parts) != 3 or not parts[2].isdigit():
        raise ValueError(
            f"sample {sample_id!r} of the profile names no split and index: take a profile that "
            "launch/profile_knobs.py wrote on this run's tasks"
        )
    return parts[1], int(parts[2])


def calibrated(table: ProfileTable, now: EndLatencies) -> tuple[ProfileTable, float]:
    """Converts a profile to the present clock of the devices, without measurement noise.

    Returns:
        The profile, and the noise of the devices that it lacks: the standard deviation of the
        logarithm of a random factor on each latency.

    Raises:
        ValueError: the profile lacks the measured samples or configurations.
    """
    table, to = table.denoised(), now.calibration
    places = [sample_place(sample_id) for sample_id in table.sample_ids]
    wanted = [(CALIBRATION_SPLIT, index) for index in range(to.num_samples)]
    ends = (CHEAPEST_KNOBS, FULL_KNOBS)
    if not set(wanted) <= set(places) or not set(ends) <= set(table.configurations):
        raise ValueError(
            f"the profile has {len(set(wanted) & set(places))} of the first {len(wanted)} "
            f"{CALIBRATION_SPLIT} samples: to convert it to this device's clock, profile them all, "
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
    """The profile with log-normal noise of this standard deviation added."""
    noise = np.random.default_rng(seed).normal(0.0, scatter, table.latencies_ms.shape)
    return replace(table, latencies_ms=(table.latencies_ms * np.exp(noise)).astype(np.float32))

"""Converts a profile to the calibrated milliseconds of a run."""

from __future__ import annotations

from dataclasses import replace

from envs.calibration import Calibration
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


def calibrated(table: ProfileTable, to: Calibration) -> ProfileTable:
    """The profile in the milliseconds of another calibration.

    Raises:
        ValueError: the profile has no calibration of its own.
    """
    own = table.calibration
    if own is None:
        raise ValueError("the profile does not say what its milliseconds mean: measure it again")
    return replace(
        table,
        latencies_ms=own.convert(table.latencies_ms, to).astype(table.latencies_ms.dtype),
        cheapest_ms=own.convert(table.cheapest_ms, to).astype(table.cheapest_ms.dtype),
        calibration=to,
    )

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


def places_in(split: str, table: ProfileTable, name: str) -> list[int]:
    """The places of a profile's samples in the split that is needed.

    Args:
        split: train, validation or test.
        table: the profile.
        name: what the profile is called in messages.

    Raises:
        ValueError: it has a sample of another split.
    """
    places = [sample_place(sample_id) for sample_id in table.sample_ids]
    other = next((place for place in places if place[0] != split), None)
    if other is not None:
        raise ValueError(
            f"{name} is a profile of the {other[0]} split, and one of the {split} split is needed: "
            f"measure it with launch/profile_knobs.py OUTPUT_DIR --split {split}"
        )
    return [index for _, index in places]


def check_held_out(table: ProfileTable, evaluated: range, name: str) -> None:
    """Refuses to learn from samples on which a run is evaluated.

    Args:
        table: what is learned from.
        evaluated: places of the validation split on which the run is evaluated meanwhile.
        name: what the profile is called in messages.

    Raises:
        ValueError: the profile has one of these samples, or one of the test split.
    """
    places = map(sample_place, table.sample_ids)
    if any(s == "test" or (s == "validation" and i in evaluated) for s, i in places):
        raise ValueError(
            f"--warm-start-profile {name} holds samples on which the run is evaluated (validation "
            f"{evaluated.start} to {evaluated.stop - 1}, and test): take another profile or "
            "another --evaluation.first-index"
        )


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

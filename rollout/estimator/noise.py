"""The noise of the clock, from repeated measurements: a lower bound for every predictor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout.profiling.records import DecodeReading, LatencyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseFloor:
    """Mean absolute error in ms of a predictor that knows every record's expected time.

    For two independent measurements a and b with normal noise it is E|a - b| / sqrt(2).
    """

    num_pairs: int
    mae_prefill_ms: float
    mae_decode_per_token_ms: float


def noise_floor(
    first: Iterable[LatencyRecord], second: Iterable[LatencyRecord], reading: DecodeReading
) -> NoiseFloor:
    """Compares records of the same sample and configuration; raises ValueError without any."""
    known = {_key(record): _times(record, reading) for record in first}
    pairs = [
        (known[_key(record)], _times(record, reading)) for record in second if _key(record) in known
    ]
    if not pairs:
        raise ValueError(
            "the repeats share no sample and configuration with the profile: measure the same "
            "samples again with launch/profile_knobs.py"
        )
    times_N22 = np.array(pairs)
    mae_2 = np.abs(times_N22[:, 0] - times_N22[:, 1]).mean(0) / 2**0.5
    return NoiseFloor(
        num_pairs=len(pairs),
        mae_prefill_ms=float(mae_2[0]),
        mae_decode_per_token_ms=float(mae_2[1]),
    )


def _key(record: LatencyRecord) -> tuple[Any, ...]:
    return (
        record.dataset,
        record.sample_key,
        record.tier,
        record.top_k,
        record.num_active_blocks,
        record.insertion_position,
    )


def _times(record: LatencyRecord, reading: DecodeReading) -> tuple[float, float]:
    return record.prefill_ms, record.decode_per_token_ms(reading)

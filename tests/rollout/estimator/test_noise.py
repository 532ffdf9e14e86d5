from dataclasses import replace

import numpy as np
import pytest

from envs.spec import Tier
from rollout.estimator.noise import noise_floor
from rollout.profiling.records import DecodeReading, LatencyRecord

RECORD = LatencyRecord(
    dataset="a",
    sample_key="a sample 1",
    vision_tokens=64,
    text_tokens=9,
    tier=Tier.LOW,
    top_k=4,
    num_active_blocks=12,
    output_tokens=2,
    prefill_ms=10.0,
    decode_ms=4.0,
    recorded_decode_per_token_ms=4.0,
    insertion_position=1,
    score=1.0,
)


def test_pairs_are_of_the_same_sample_and_configuration():
    again = replace(RECORD, prefill_ms=12.0, recorded_decode_per_token_ms=5.0)
    others = [replace(again, top_k=5), replace(again, sample_key="a sample 2")]
    floor = noise_floor([RECORD], [again, *others], DecodeReading.RECORDED)
    assert floor.num_pairs == 1
    assert floor.mae_prefill_ms == pytest.approx(2 / 2**0.5)
    assert floor.mae_decode_per_token_ms == pytest.approx(1 / 2**0.5)


def test_it_is_the_error_of_a_predictor_that_knows_the_mean():
    rng = np.random.default_rng(0)
    records = [replace(RECORD, sample_key=str(n)) for n in range(20_000)]
    first, second = (
        [
            replace(r, prefill_ms=10 + x)
            for r, x in zip(records, rng.normal(size=20_000), strict=True)
        ]
        for _ in range(2)
    )
    floor = noise_floor(first, second, DecodeReading.COMPUTED)
    assert floor.mae_prefill_ms == pytest.approx((2 / np.pi) ** 0.5, rel=0.03)


def test_nothing_in_common_is_an_error():
    with pytest.raises(ValueError, match="share no sample"):
        noise_floor([RECORD], [replace(RECORD, top_k=5)], DecodeReading.RECORDED)

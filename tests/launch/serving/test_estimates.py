"""What is known of the time of answers, by size."""

import pytest

from launch.serving.estimates import (
    LEAST_SHARE,
    LONG_PROMPT_CHARS,
    CheapestTimes,
    Estimates,
    ImageSize,
    Observation,
    RequestSize,
)
from tests.launch.serving.asgi import cheapest_times

PICTURE, TEXT = RequestSize(image=ImageSize.SMALL), RequestSize()


def estimates():
    return Estimates(started=cheapest_times(image_ms=20.0, text_ms=10.0))


def seen(size, latency_ms, **changes):
    fields = {"is_cheapest": False, "is_whole": True, "wall_ms": latency_ms, "at_s": 0.0}
    fields["replica_ms"] = latency_ms
    return Observation(size=size, latency_ms=latency_ms, **{**fields, **changes})


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        (None, ImageSize.NONE),
        ((1, 1), ImageSize.SMALL),
        ((140, 112), ImageSize.SMALL),
        ((448, 336), ImageSize.MEDIUM),
        ((336, 448), ImageSize.MEDIUM),
        ((4000, 3000), ImageSize.LARGE),
    ],
)
def test_sizes_of_requests(image_size, expected):
    assert RequestSize.of(image_size, "a").image == expected
    assert not RequestSize.of(image_size, "a" * (LONG_PROMPT_CHARS - 1)).has_long_prompt
    assert RequestSize.of(image_size, "a" * LONG_PROMPT_CHARS).has_long_prompt


def test_the_cheapest_configurations_latency_follows_its_answers():
    known = estimates()
    known.observe(seen(PICTURE, 30.0, is_cheapest=True, replica_ms=33.0))
    assert known.cheapest_ms(PICTURE) == pytest.approx(21)
    assert known.cheapest_ms(TEXT) == 10
    assert known.overhead_ms(PICTURE) == pytest.approx(3)
    assert known.replica_ms == pytest.approx(33)
    # 20 was measured, and 30 is 10 off.
    assert known.needed_ms(PICTURE, 0.0) == pytest.approx(21 + 1 + 3)


def test_nothing_is_faster_than_the_cheapest_but_one_answer_is_not_believed():
    known = estimates()
    known.observe(seen(TEXT, 8.0))
    assert known.cheapest_ms(TEXT) == pytest.approx(9.8)
    known.observe(seen(TEXT, 500.0))
    assert known.cheapest_ms(TEXT) == pytest.approx(9.8)
    for _ in range(1000):
        known.observe(seen(TEXT, 0.1))
    assert known.cheapest_ms(TEXT) == pytest.approx(10 * LEAST_SHARE, rel=1e-3)


def test_answers_that_the_request_cut_short_say_nothing():
    known = estimates()
    known.observe(seen(TEXT, 8.0, is_cheapest=True, is_whole=False))
    assert known.cheapest_ms(TEXT) == 10


def test_every_size_has_to_be_measured():
    with pytest.raises(ValueError, match="there is no time for RequestSize"):
        CheapestTimes(by_size_ms={TEXT: 5.0})

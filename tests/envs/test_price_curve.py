"""Device time by price: reading, writing and inverting it."""

import numpy as np
import pytest

from envs.price_curve import PriceCurve

CURVE = PriceCurve(prices=(0.0, 0.02, 0.1, 1.0), time_ms=(50.0, 50.0, 40.0, 20.0))


def test_the_lowest_price_for_a_time():
    assert CURVE.price_for(60.0) == CURVE.price_for(50.0) == 0.0
    assert CURVE.price_for(45.0) == pytest.approx(0.06)
    assert CURVE.price_for(40.0) == pytest.approx(0.1)
    assert CURVE.price_for(30.0) == pytest.approx(0.55)
    assert CURVE.price_for(20.0) == CURVE.price_for(1.0) == CURVE.price_for(-5.0) == 1.0
    for time_ms in np.linspace(20.5, 49.5, 50):
        assert CURVE.time_at(CURVE.price_for(time_ms)) == pytest.approx(time_ms)


def test_a_curve_that_is_flat_has_only_its_ends():
    flat = PriceCurve(prices=(0.0, 1.0), time_ms=(30.0, 30.0))
    assert (flat.price_for(30.0), flat.price_for(29.9)) == (0.0, 1.0)
    single = PriceCurve(prices=(0.0,), time_ms=(30.0,))
    assert single.price_for(1.0) == 0.0


def test_noise_is_levelled_out():
    fitted = PriceCurve.fitted((0.0, 0.1, 0.3, 1.0), [40.0, 41.0, 35.0, 30.0])
    assert fitted.time_ms == pytest.approx((40.5, 40.5, 35.0, 30.0))


def test_it_is_the_same_after_a_file(tmp_path):
    CURVE.save(tmp_path / "curve.json")
    assert PriceCurve.load(tmp_path / "curve.json") == CURVE


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "null", '{"prices": [0], "time_ms": []}'),
        *('{"prices": [0, 1], "time_ms": [1, 2]}', '{"prices": [1, 0], "time_ms": [2, 1]}'),
        *('{"prices": [0, 1], "time_ms": [2, NaN]}', '{"prices": [0, 1], "time_ms": [2, -1]}'),
        *('{"prices": [-1], "time_ms": [2]}', '{"prices": ["a"], "time_ms": [2]}'),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "curve.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"curve\.json is not a price curve"):
        PriceCurve.load(path)

"""Prices of time: what one may be, and how they are drawn."""

import math

import numpy as np
import pytest

from envs.prices import FREE, PriceRange, PriceSampler, check_price

RANGE = PriceRange(low=0.01, high=2.0)
SAMPLER = PriceSampler(range=RANGE, share_free=0.2)
COUNT = 20_000


def one_by_one(sampler, rng):
    return np.array([sampler.draw(rng) for _ in range(COUNT)])


def at_once(sampler, rng):
    return sampler.draw_many(COUNT, rng)


@pytest.mark.parametrize("draw", [one_by_one, at_once])
def test_a_share_is_free_and_the_logarithms_of_the_others_are_uniform(draw):
    prices = draw(SAMPLER, np.random.default_rng(0))
    assert prices.dtype == np.float64
    # A share of .2 among 20,000 has a standard error of .0028.
    assert (prices == FREE).mean() == pytest.approx(0.2, abs=0.01)
    priced = prices[prices != FREE]
    assert RANGE.low <= priced.min() < 1.01 * RANGE.low
    assert 0.99 * RANGE.high < priced.max() <= RANGE.high
    levels = np.linspace(0.1, 0.9, 9)
    expected = RANGE.low * (RANGE.high / RANGE.low) ** levels
    # A median of 16,000 uniform values has a standard error of .004.
    found = np.log(np.quantile(priced, levels) / expected) / math.log(RANGE.high / RANGE.low)
    assert np.abs(found).max() < 0.015


@pytest.mark.parametrize("draw", [one_by_one, at_once])
def test_the_same_generator_draws_the_same(draw):
    first, again, other = (draw(SAMPLER, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("draw", [one_by_one, at_once])
@pytest.mark.parametrize("share_free", [0.0, 1.0])
def test_none_or_all_may_be_free(draw, share_free):
    prices = draw(PriceSampler(range=RANGE, share_free=share_free), np.random.default_rng(0))
    assert ((prices == FREE) == share_free).all()


def test_a_fifth_is_free_by_default():
    assert PriceSampler(range=RANGE).share_free == 0.2


@pytest.mark.parametrize("price", [-0.1, math.nan, math.inf])
def test_unusable_prices_are_refused(price):
    with pytest.raises(ValueError, match="finite number of at least 0"):
        check_price(price)
    with pytest.raises(ValueError, match="finite number of at least 0"):
        PriceRange(low=price, high=3.0)
    with pytest.raises(ValueError, match="finite number of at least 0"):
        PriceRange(low=0.1, high=price)


def test_a_price_is_a_float():
    assert check_price(0) == FREE
    assert isinstance(check_price(1), float)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_empty_ranges_and_those_that_begin_at_zero_are_refused(low, high):
    with pytest.raises(ValueError, match="give 0 < low < high"):
        PriceRange(low=low, high=high)


@pytest.mark.parametrize("share_free", [-0.1, 1.1, math.nan])
def test_an_impossible_share_is_refused(share_free):
    with pytest.raises(ValueError, match=r"not within 0\.\.1"):
        PriceSampler(range=RANGE, share_free=share_free)

"""Curves of accuracy against device time, by hand and under policies that are equal."""

from dataclasses import replace

import numpy as np
import pytest

from launch.analysis.statistics import Interval
from launch.analysis.tradeoff import (
    AccuracyLead,
    Curve,
    TimeRatio,
    accuracy_at_equal_time,
    lead_at_lowest_price,
    time_at_equal_accuracy,
)


def curve_of(accuracy_PS, time_ms_PS):
    accuracy_PS, time_ms_PS = np.array(accuracy_PS, float), np.array(time_ms_PS, float)
    count = len(accuracy_PS)
    return Curve(
        prices=tuple(np.arange(count) / 10),
        accuracy_PS=accuracy_PS,
        time_ms_PS=time_ms_PS,
        violation_P=np.zeros(count),
    )


def certain(*points, samples=3):
    """A curve through (ms, accuracy) at prices 0, 0.1, ..., the same on all samples."""
    time_P1, accuracy_P1 = np.array(points).T[:, :, None]
    return curve_of(accuracy_P1.repeat(samples, 1), time_P1.repeat(samples, 1))


OURS = certain((40, 0.8), (20, 0.4))


def test_a_curve_is_made_of_episodes():
    """Two prices, two samples, two budgets; the first budget is infeasible for the last sample."""
    curve = Curve.of_episodes(
        prices=(0.0, 0.5),
        inside_PSK=np.array([[[1, 0], [0, 1]], [[1, 1], [0, 0]]]),
        latency_ms_PSK=np.array([[[10, 20], [30, 50]], [[10, 10], [20, 40]]]),
        over_PSK=np.array([[[False, True], [True, False]], [[False] * 2, [True, False]]]),
        feasible_SK=np.array([[True, True], [False, True]]),
    )
    assert curve.accuracy_PS.tolist() == [[0.5, 0.5], [1, 0]]
    assert curve.time_ms_PS.tolist() == [[15, 40], [10, 30]]
    assert curve.accuracy_P.tolist() == [0.5, 0.5]
    assert curve.time_ms_P.tolist() == [27.5, 20]
    assert curve.violation_P == pytest.approx([1 / 3, 0])
    assert curve.violation_rate == pytest.approx(1 / 6)
    assert curve.accuracy_ci_P == pytest.approx([0, 1.96 * 0.5])
    assert not curve.ignores_price
    assert certain((40, 0.7), (40, 0.7)).ignores_price
    assert certain((40, 0.7)).ignores_price


def test_time_at_equal_accuracy_is_a_geometric_mean_over_the_points_that_are_reached():
    """At .6 it is 30 of 50 ms, at .4 20 of 30 ms; nobody reaches .9."""
    found = time_at_equal_accuracy(OURS, certain((60, 0.9), (50, 0.6), (30, 0.4)))
    assert found is not None
    assert found.ratio == pytest.approx((30 / 50 * 20 / 30) ** 0.5)
    assert (found.num_reached, found.num_points) == (2, 3)
    assert found.low == pytest.approx(found.ratio)
    assert found.high == pytest.approx(found.ratio)
    assert found.is_gain
    assert not found.is_loss
    assert str(found) == "0.63 (0.63 to 0.63)"


def test_a_lower_accuracy_than_all_of_ours_takes_our_cheapest_point():
    found = time_at_equal_accuracy(OURS, certain((10, 0.2)))
    assert found is not None
    assert found.ratio == pytest.approx(2)
    assert found.is_loss


def test_a_rival_is_as_fast_as_the_cheapest_point_that_is_as_accurate():
    """The rival has .5 at 60 ms, but its curve between 30 and 50 ms reaches it at 40 ms."""
    found = time_at_equal_accuracy(OURS, certain((60, 0.5), (50, 0.6), (30, 0.4)))
    assert found is not None
    assert found.ratio == pytest.approx((25 / 40 * 30 / 50 * 20 / 30) ** (1 / 3))


def test_our_curve_goes_through_points_that_are_slower_and_less_accurate():
    """From .3 at 30 ms to .8 at 40 ms, .6 is reached at 36 ms; the front has it at 30 ms."""
    ours = certain((40, 0.8), (30, 0.3), (20, 0.4))
    found = time_at_equal_accuracy(ours, certain((50, 0.6)))
    assert found is not None
    assert found.ratio == pytest.approx(36 / 50)


def test_points_are_in_the_order_of_their_times():
    ours = certain((20, 0.4), (40, 0.8))
    found = time_at_equal_accuracy(ours, certain((50, 0.6)))
    lead = accuracy_at_equal_time(ours, certain((30, 0.5)))
    assert found is not None
    assert found.ratio == pytest.approx(30 / 50)
    assert lead is not None
    assert lead.difference.mean == pytest.approx(0.1)


def test_accuracy_at_equal_time_leaves_out_what_is_too_fast_for_us():
    """+.15 at 30 ms, -.1 at 60 ms, where we have no better point; 10 ms are not enough for us."""
    found = accuracy_at_equal_time(OURS, certain((60, 0.9), (30, 0.45), (10, 0.3)))
    assert found is not None
    assert found.difference.mean == pytest.approx(0.025)
    assert found.difference.half_width == pytest.approx(0)
    assert (found.num_reached, found.num_points) == (2, 3)
    assert found.is_gain
    assert str(found) == "+0.025 ± 0.000"


def test_more_time_than_all_of_ours_takes_our_most_expensive_point():
    found = accuracy_at_equal_time(certain((40, 0.6), (20, 0.8)), certain((60, 0.7)))
    assert found is not None
    assert found.difference.mean == pytest.approx(-0.1)
    assert found.is_loss


def test_what_is_not_reached_at_all_is_none():
    assert time_at_equal_accuracy(OURS, certain((50, 0.9), (45, 0.85))) is None
    assert accuracy_at_equal_time(OURS, certain((15, 0.3), (10, 0.2))) is None


def test_single_points():
    found = time_at_equal_accuracy(certain((20, 0.5)), certain((25, 0.5)))
    assert found is not None
    assert found.ratio == pytest.approx(0.8)
    assert (found.num_reached, found.num_points) == (1, 1)
    lead = accuracy_at_equal_time(certain((20, 0.5)), certain((25, 0.4)))
    assert lead is not None
    assert lead.difference.mean == pytest.approx(0.1)


def test_a_policy_equals_itself():
    rng = np.random.default_rng(0)
    ours = curve_of(rng.random((6, 50)) < 0.7, rng.uniform(20, 60, (6, 50)))
    found, lead = time_at_equal_accuracy(ours, ours), accuracy_at_equal_time(ours, ours)
    assert found is not None
    assert (found.ratio, found.low, found.high) == pytest.approx((1, 1, 1))
    assert not found.is_gain
    assert not found.is_loss
    assert lead is not None
    assert (lead.num_reached, lead.num_points) == (6, 6)
    assert lead.difference.mean == pytest.approx(0)
    assert lead.difference.half_width == pytest.approx(0)


@pytest.mark.parametrize("error", [-1e-15, 1e-15])
def test_rounding_is_neither_gain_nor_loss(error):
    lead = AccuracyLead(difference=Interval(error, 0.0), num_reached=1, num_points=1)
    ratio = 1 + error
    found = TimeRatio(ratio=ratio, low=ratio, high=ratio, num_reached=1, num_points=1)
    assert not any((lead.is_gain, lead.is_loss, found.is_gain, found.is_loss))


def test_a_point_of_our_own_curve_is_reached_whatever_the_rounding():
    rng = np.random.default_rng(0)
    scores_PS, times_P1 = rng.random((6, 50)), np.array([[60], [50], [45], [40], [35], [30]])
    scores_PS[0] += 1
    times_PS = times_P1 * rng.uniform(0.999, 1.001, (6, 50))
    ours = curve_of(scores_PS, times_PS)
    found = time_at_equal_accuracy(ours, curve_of(scores_PS[:1], times_PS[:1]))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((1, 1))
    lead = accuracy_at_equal_time(ours, curve_of(scores_PS[-1:], times_PS[-1:]))
    assert lead is not None
    assert lead.difference.half_width < 1e-9


def test_intervals_are_paired_by_sample():
    """Samples differ tenfold in time, but ours take 0.9 of each."""
    rng = np.random.default_rng(0)
    times_PS, scores_PS = rng.uniform(10, 100, (1, 200)), rng.random((1, 200)) < 0.7
    theirs = curve_of(scores_PS, times_PS)
    found = time_at_equal_accuracy(curve_of(scores_PS, 0.9 * times_PS), theirs)
    assert found is not None
    assert (found.ratio, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))

    others_PS = np.where(rng.random((1, 200)) < 0.1, 0, scores_PS)
    ours = curve_of(others_PS, 0.9 * times_PS)
    lead, expected = accuracy_at_equal_time(ours, theirs), Interval.of((others_PS - scores_PS)[0])
    assert lead is not None
    assert lead.difference.mean == pytest.approx(expected.mean)
    assert lead.difference.half_width == pytest.approx(expected.half_width, rel=0.06)
    assert lead_at_lowest_price(ours, theirs) == expected


def test_what_is_reached_by_luck_is_no_gain():
    """Both have .5, in half of our time; in many resamples we do not reach theirs."""
    ours, theirs = curve_of([[1, 1, 0, 0]], [[10] * 4]), curve_of([[0, 0, 1, 1]], [[20] * 4])
    found = time_at_equal_accuracy(ours, theirs)
    assert found is not None
    assert found.ratio == pytest.approx(0.5)
    assert not found.is_gain
    assert str(found) == "0.50 (0.50 or more)"


def test_one_sample_has_no_interval():
    found = time_at_equal_accuracy(certain((20, 1), samples=1), certain((40, 1), samples=1))
    lead = accuracy_at_equal_time(certain((20, 1), samples=1), certain((40, 0), samples=1))
    assert found is not None
    assert np.isnan([found.low, found.high]).all()
    assert not found.is_gain
    assert lead is not None
    assert np.isnan(lead.difference.half_width)
    assert not lead.is_gain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prices": ()}, "at least one"),
        ({"prices": (0.1, 0.0)}, "ascending"),
        ({"prices": (0.0,)}, "one row per price"),
        ({"accuracy_PS": np.full((2, 3), np.nan)}, "not finite"),
        ({"accuracy_PS": np.zeros((2, 4))}, "same samples"),
        ({"time_ms_PS": np.zeros((2, 3))}, "not positive"),
        ({"violation_P": np.zeros(3)}, "one per price"),
    ],
)
def test_what_is_no_curve_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(OURS, **change)


@pytest.mark.parametrize(
    "compare", [time_at_equal_accuracy, accuracy_at_equal_time, lead_at_lowest_price]
)
def test_policies_ran_on_the_same_samples(compare):
    with pytest.raises(ValueError, match="on 3 samples and the other on 2"):
        compare(OURS, certain((20, 0.4), samples=2))


FLAT = np.array([0.84, 0.86, 0.85, 0.86, 0.85, 0.75])
SLOPED = np.array([0.82, 0.81, 0.80, 0.79, 0.78, 0.72])
TIMES_MS = np.array([48.0, 47, 44, 42, 40, 34])


def equal_policies(seed, accuracy_P, samples=200, budgets=5):
    """Two policies of the same expected curve: 0/1 scores, hard and easy samples, own errors.

    A sample is answered if its ease, plus an error that the prices of a policy mostly share,
    exceeds the quantile of the accuracy.
    """
    rng = np.random.default_rng(seed)
    shape = (len(accuracy_P), samples, budgets)
    ease_PSK = rng.normal(0, 0.7, (1, samples, 1)) + rng.normal(0, 0.5, (1, samples, budgets))
    length_S1 = np.exp(rng.normal(0, 0.1, (samples, 1)))
    rest = 1 - 0.7**2 - 0.5**2
    reference = rng.normal(0, 1, 100_000)

    def policy():
        shared_PSK = rng.normal(0, (0.8 * rest) ** 0.5, (1, samples, budgets))
        own_PSK = rng.normal(0, (0.2 * rest) ** 0.5, shape)
        limit_P = np.quantile(reference, 1 - accuracy_P)
        scores_PSK = ease_PSK + shared_PSK + own_PSK > limit_P[:, None, None]
        times_PSK = TIMES_MS[:, None, None] * length_S1 * np.exp(rng.normal(0, 0.05, shape))
        return curve_of(scores_PSK.mean(-1), times_PSK.mean(-1))

    return policy(), policy()


@pytest.mark.parametrize("accuracy_P", [FLAT, SLOPED], ids=["flat", "sloped"])
def test_intervals_cover_that_equal_policies_are_equal(accuracy_P):
    """In 95 % of 120 draws, give or take 2.5 standard errors of 2 %.

    Where the accuracy hardly depends on the price, comparing with the front of our points would
    find a gain.
    """
    ratios, leads = [], []
    for seed in range(120):
        ours, theirs = equal_policies(seed, accuracy_P)
        ratios.append(time_at_equal_accuracy(ours, theirs, resamples=200))
        leads.append(accuracy_at_equal_time(ours, theirs, resamples=200))
    assert 0.9 <= np.mean([r.low <= 1 <= r.high for r in ratios if r is not None]) < 1
    assert 0.9 <= np.mean([not x.difference.excludes_zero for x in leads if x is not None]) < 1
    assert abs(np.mean([np.log(r.ratio) for r in ratios if r is not None])) < 0.02
    assert abs(np.mean([x.difference.mean for x in leads if x is not None])) < 0.002
    # And the intervals are narrow enough to say something.
    assert np.median([r.high - r.low for r in ratios if r is not None]) < 0.3
    assert np.median([x.difference.half_width for x in leads if x is not None]) < 0.02

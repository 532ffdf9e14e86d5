"""Intervals against numbers worked out by hand."""

import numpy as np
import pytest

from launch.analysis.statistics import Interval, half_widths


def test_the_interval_of_a_mean():
    interval = Interval.of(np.array([0.0, 1.0, 1.0, 0.0]))
    # sample variance 4 * 0.25 / 3; standard error sqrt(1/3 / 4)
    assert interval.mean == 0.5
    assert interval.half_width == pytest.approx(1.96 * (1 / 12) ** 0.5)
    assert str(interval) == "0.500 ± 0.566"
    assert Interval(-0.2, 0.1).excludes_zero
    assert not Interval(0.1, 0.1).excludes_zero
    assert Interval(-0.2, 0.1).signed() == "-0.200 ± 0.100"
    assert Interval(-0.0001, 0.1).signed() == "+0.000 ± 0.100"


def test_one_sample_has_no_interval():
    assert np.isnan(half_widths(np.ones((1, 3)))).all()
    assert half_widths(np.ones((2, 3))).tolist() == [0, 0, 0]

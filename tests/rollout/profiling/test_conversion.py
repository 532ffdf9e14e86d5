from dataclasses import replace

import numpy as np
import pytest

from rollout.profiling.conversion import calibrated, sample_place
from tests import table_rig


@pytest.fixture(scope="module")
def table():
    made = table_rig.synthetic_table(60)
    return replace(made, calibration=table_rig.calibration_of(made))


def test_a_profile_takes_another_calibration_at_both_ends_and_keeps_the_order(table):
    to = table.calibration.slowed(2.0, 3.0)
    moved = calibrated(table, to)
    assert moved.calibration == to
    ends = np.median(table_rig.end_latencies(moved), axis=0)
    assert ends == pytest.approx([to.cheapest_ms, to.full_ms], rel=1e-5)
    before, after = (np.median(t.latencies_ms, axis=0) for t in (table, moved))
    assert (np.argsort(before) == np.argsort(after)).all()
    assert np.median(moved.cheapest_ms / table.cheapest_ms) == pytest.approx(2.0, rel=0.02)


def test_a_profile_keeps_its_milliseconds_under_its_own_calibration(table):
    same = calibrated(table, table.calibration)
    assert np.allclose(same.latencies_ms, table.latencies_ms, rtol=1e-5)


def test_a_profile_without_a_calibration_is_refused(table):
    with pytest.raises(ValueError, match="what its milliseconds mean"):
        calibrated(replace(table, calibration=None), table.calibration)


def test_a_profile_of_unknown_samples_is_refused():
    assert sample_place("digits/validation/12") == ("validation", 12)
    with pytest.raises(ValueError, match="names no split and index"):
        sample_place("12")

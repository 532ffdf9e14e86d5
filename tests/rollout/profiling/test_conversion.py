from dataclasses import replace

import numpy as np
import pytest

from rollout.profiling.conversion import calibrated, check_held_out, places_in, sample_place
from rollout.simulation.table_samples import calibration_of, extreme_latencies
from tests import table_rig


@pytest.fixture(scope="module")
def table():
    made = table_rig.synthetic_table(60)
    return replace(made, calibration=calibration_of(made))


def test_a_profile_takes_another_calibration_at_both_ends_and_keeps_the_order(table):
    to = table.calibration.slowed(2.0, 3.0)
    moved = calibrated(table, to)
    assert moved.calibration == to
    ends = np.median(extreme_latencies(moved), axis=0)
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


def test_a_profile_of_another_split_is_refused(table):
    assert places_in("validation", table.rows([3, 5]), "p.npz") == [3, 5]
    with pytest.raises(ValueError, match=r"p.npz is a profile of the validation split, and one of"):
        places_in("test", table, "p.npz")


def test_samples_on_which_a_run_is_evaluated_are_not_learned_from(table):
    names = ("chain/validation/3", "chain/train/20001", "chain/validation/20000")
    for count, is_refused in ((1, False), (2, False), (3, True)):
        learned = replace(table.rows(range(count)), sample_ids=names[:count])
        if is_refused:
            with pytest.raises(ValueError, match=r"holds samples .* 20000 to 20003, and"):
                check_held_out(learned, range(20000, 20004), "p.npz")
        else:
            check_held_out(learned, range(20000, 20004), "p.npz")
    tested = replace(table.rows(range(1)), sample_ids=("chain/test/5",))
    with pytest.raises(ValueError, match="and test"):
        check_held_out(tested, range(20000, 20004), "p.npz")

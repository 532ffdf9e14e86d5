from dataclasses import replace

import numpy as np
import pytest

from envs.spec import BudgetRange, all_knobs
from launch.cluster.fleet import in_parts
from policy.config import PolicySetup
from rollout.latency.calibration import CALIBRATION_SPLIT, Calibration, EndLatencies, recalibrated
from rollout.profiling.conversion import calibrated, sample_place, scattered
from tests import table_rig

NUM_SAMPLES = 20


@pytest.fixture(scope="module")
def table():
    return table_rig.synthetic_table(60)


class Bent:
    """Devices on which short work takes twice as long as the table says, and long work thrice."""

    def __init__(self, table, scatter: float = 0.0):
        self.ends, self.scatter = table_rig.end_latencies(table), scatter

    def end_latencies(self, split: str, num_samples: int) -> np.ndarray:
        assert split == CALIBRATION_SPLIT
        once = self.ends[:num_samples] * [2.0, 3.0]
        noise = np.random.default_rng(7).normal(0.0, self.scatter, (4, *once.shape))
        return once * np.exp(noise)


def measured(table, scatter: float = 0.0) -> EndLatencies:
    return EndLatencies.measure(Bent(table, scatter), NUM_SAMPLES)


def test_a_profile_takes_the_devices_own_latencies_at_both_ends_and_keeps_the_order(table):
    now = measured(table)
    moved, scatter = calibrated(table, now)
    assert scatter == pytest.approx(0.0, abs=1e-6)
    first = np.median(table_rig.end_latencies(moved)[:NUM_SAMPLES], axis=0)
    assert first == pytest.approx([now.calibration.cheapest_ms, now.calibration.full_ms], rel=1e-5)
    assert now.budgets(0.1).range.low_ms == pytest.approx(0.8 * now.calibration.cheapest_ms)
    before, after = (np.median(t.latencies_ms, axis=0) for t in (table.denoised(), moved))
    assert (np.argsort(before) == np.argsort(after)).all()
    ratios = after / before
    assert ratios.min() >= 1.9
    assert ratios.max() <= 3.1


def test_devices_that_scatter_more_than_the_profile_make_it_scatter(table):
    now = measured(table, scatter=0.2)
    assert now.calibration.scatter == pytest.approx(0.2, rel=0.15)
    moved, scatter = calibrated(table, now)
    assert scatter == pytest.approx(0.2, rel=0.2)
    ratios = scattered(moved, scatter).latencies_ms / moved.latencies_ms
    assert np.log(ratios).std() == pytest.approx(scatter, rel=0.05)


def test_devices_like_the_profiled_one_only_steady_it(table):
    steady = table.denoised()
    own = EndLatencies(table_rig.end_latencies(steady)[None])
    assert np.allclose(calibrated(table, own)[0].latencies_ms, steady.latencies_ms, rtol=1e-5)


def test_steadied_latencies_lack_the_noise_and_keep_what_samples_and_configurations_take(table):
    tasks = np.array(table.tasks)
    rng = np.random.default_rng(3)
    by_sample, by_task = rng.normal(size=60), {t: rng.normal(size=225) for t in set(table.tasks)}
    true = np.array([s + by_task[t] for s, t in zip(by_sample, tasks, strict=True)])
    noisy = true + rng.normal(0.0, 0.1, true.shape)
    steady = replace(table, latencies_ms=np.exp(noisy).astype(np.float32)).denoised()
    again = steady.denoised()
    assert np.allclose(again.latencies_ms, steady.latencies_ms, rtol=1e-5)
    errors = np.log(steady.latencies_ms) - true
    assert errors.std() < 0.05


def test_a_controller_answers_on_another_clock_as_it_did_on_its_own(table):
    budgets = table_rig.budgets_of(table)
    setup = PolicySetup.of(96, budgets)
    own = Calibration.of_latencies(table_rig.end_latencies(table)[None, :NUM_SAMPLES])
    now = measured(table)
    moved = recalibrated(setup, own, now, keeps_budgets=False)
    to = now.calibration
    for own_ms, now_ms in ((own.cheapest_ms, to.cheapest_ms), (own.full_ms, to.full_ms)):
        seen = setup.controller.budget_range.normalise(own_ms)
        assert moved.controller.budget_range.normalise(now_ms) == pytest.approx(seen)
    assert moved.budgets == now.budgets(budgets.infeasible_share)
    stated = recalibrated(setup, own, now, keeps_budgets=True)
    assert stated.budgets == budgets
    assert stated.controller == moved.controller


def test_short_budgets_stay_positive_on_another_clock():
    own = Calibration(cheapest_ms=20.0, full_ms=40.0, scatter=0.1, num_samples=8)
    to = Calibration(cheapest_ms=10.0, full_ms=50.0, scatter=0.1, num_samples=8)
    converted = own.convert([1.0, 19.999, 20.0, 30.0, 50.0], to)
    assert converted == pytest.approx([0.1, 9.998, 10.0, 30.0, 70.0])


def test_what_cannot_be_compared_is_refused(table):
    now = measured(table)
    with pytest.raises(ValueError, match="15 of the first 20 validation samples"):
        calibrated(table.rows(np.arange(15)), now)
    part = replace(
        table,
        configurations=table.configurations[5:7],
        scores=table.scores[:, 5:7],
        latencies_ms=table.latencies_ms[:, 5:7],
    )
    with pytest.raises(ValueError, match="high-p1-k8-b16 among the configurations"):
        calibrated(part, now)
    with pytest.raises(ValueError, match="too busy to be measured"):
        Calibration(cheapest_ms=30.0, full_ms=29.0, scatter=0.1, num_samples=8)


def test_a_profile_of_unknown_samples_is_refused():
    assert sample_place("digits/validation/12") == ("validation", 12)
    with pytest.raises(ValueError, match="names no split and index"):
        sample_place("12")


@pytest.mark.parametrize(
    ("low_ms", "high_ms", "is_refused"),
    [(170, 380, True), (1, 9, True), (30, 60, False), (5, 15, False), (85, 400, False)],
)
def test_stated_budgets_must_lie_where_configurations_differ(low_ms, high_ms, is_refused):
    ends = EndLatencies(np.array([[[10.0, 90.0], [12.0, 88.0]]]))
    stated = BudgetRange(low_ms=low_ms, high_ms=high_ms)
    if not is_refused:
        ends.check_straddles(stated)
        return
    with pytest.raises(ValueError, match=rf"{low_ms}\.\.{high_ms} ms.*11\.0 ms.*89\.9 ms"):
        ends.check_straddles(stated)


def test_a_call_of_a_profile_stays_far_below_its_limit():
    every = tuple(all_knobs())
    assert in_parts(every, full_ms=60, limit_s=120) == [every]
    parts = in_parts(every, full_ms=1000, limit_s=120)
    assert [len(part) for part in parts] == [30] * 7 + [15]
    assert sum(parts, ()) == every
    assert len(in_parts(every, full_ms=60_000, limit_s=120)) == 225, "one at a time at least"

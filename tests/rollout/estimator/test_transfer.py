import numpy as np
import pytest
import torch

from rollout.estimator.estimator import LatencyEstimator
from rollout.estimator.fit import EstimatorFit, FitConfig
from rollout.estimator.latency_table import LatencyTable, split_by_sample
from rollout.estimator.metrics import predict_table
from rollout.estimator.transfer import (
    affine_copy,
    fit_affine,
    recalibrate_affine,
)
from rollout.profiling.records import DecodeReading, ProfileReader
from tests.rollout.estimator.synthetic import Law, write_profiles

NEW_HARDWARE = Law(speed=2.5, offset_ms=12.0)


def read(folder, law, seed):
    write_profiles(folder, law=law, count=40, datasets=("okvqa",), seed=seed)
    return LatencyTable.of(ProfileReader(folder), DecodeReading.RECORDED)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    table = read(tmp_path_factory.mktemp("old"), Law(), 0)
    fit = EstimatorFit(*split_by_sample(table, train_share=0.8, seed=0), FitConfig(num_epochs=15))
    for _ in range(15):
        fit.run_epoch()
    return fit.estimator


@pytest.fixture(scope="module")
def new_hardware(tmp_path_factory):
    table = read(tmp_path_factory.mktemp("new"), NEW_HARDWARE, 1)
    return split_by_sample(table, train_share=0.5, seed=0)


@pytest.mark.parametrize("num_points", [10, 25, 50, 100])
def test_a_few_points_adapt_to_new_hardware(fitted, new_hardware, num_points):
    pool, held_out = new_hardware
    for seed in range(5):
        rows = np.random.default_rng(seed).choice(len(pool), num_points, replace=False)
        result = recalibrate_affine(fitted, pool.rows(rows), held_out)
        before, after = result.before, result.after
        print(
            f"{num_points} points: prefill {before.rel_error_prefill:.1%} "
            f"to {after.rel_error_prefill:.1%}, decode {before.rel_error_decode_per_token:.1%} to "
            f"{after.rel_error_decode_per_token:.1%}"
        )
        assert result.num_points == num_points
        assert before.rel_error_prefill > 0.3
        assert before.rel_error_decode_per_token > 0.3
        assert after.rel_error_prefill < 0.05
        assert after.rel_error_decode_per_token < 0.1


def test_the_affine_map_is_applied_to_predictions(fitted, new_hardware):
    points = new_hardware[0].rows(np.arange(50))
    old, new = (predict_table(e, points) for e in (fitted, affine_copy(fitted, points)))
    for column in range(2):
        slope, offset_ms = fit_affine(old[:, column], points.targets_ms_N2[:, column])
        np.testing.assert_allclose(new[:, column], slope * old[:, column] + offset_ms, rtol=1e-5)


def test_fit_affine_by_hand():
    predicted = np.linspace(10, 100, 1000)
    slope, offset_ms = fit_affine(predicted, 2 * predicted + 5)
    assert (slope, offset_ms) == pytest.approx((2, 5), rel=0.01)
    # Points of one prediction cannot tell slope from offset: all goes to the slope.
    assert fit_affine(np.full(10, 10.0), np.full(10, 25.0)) == pytest.approx((2.5, 0), abs=1e-6)


def test_the_original_stays_as_it_is(fitted, new_hardware):
    before = {name: tensor.clone() for name, tensor in fitted.state_dict().items()}
    recalibrate_affine(fitted, new_hardware[0].rows(np.arange(20)), new_hardware[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in fitted.state_dict().items())


def test_a_recalibrated_estimator_can_be_saved(fitted, new_hardware, tmp_path):
    adapted = affine_copy(fitted, new_hardware[0].rows(np.arange(20)))
    adapted.save(tmp_path / "new.safetensors")
    loaded = LatencyEstimator.load(tmp_path / "new.safetensors")
    held_out = new_hardware[1]
    np.testing.assert_array_equal(predict_table(loaded, held_out), predict_table(adapted, held_out))


def test_too_few_or_contradicting_points_are_refused(fitted, new_hardware):
    pool = new_hardware[0]
    with pytest.raises(ValueError, match="at least 10"):
        affine_copy(fitted, pool.rows(np.arange(9)))
    predicted = predict_table(fitted, pool)
    falling = pool.rows(np.arange(len(pool)))
    falling.targets_ms_N2[:] = 400 - predicted
    with pytest.raises(ValueError, match="measure more points"):
        affine_copy(fitted, falling)

import time
from dataclasses import replace
from statistics import median

import pytest
import torch

from envs.spec import TIERS, Tier, all_knobs
from rollout.estimator.estimator import LatencyEstimator, LatencyEstimatorTrainer
from rollout.estimator.search import (
    SampleTokens,
    feasible_configurations,
)
from tests.rollout.estimator.test_estimator import batch

GRID = tuple(all_knobs())
SAMPLE = SampleTokens(text_tokens=40, vision_tokens=dict(zip(TIERS, (200, 400, 700), strict=True)))


@pytest.fixture(scope="module")
def estimator():
    torch.manual_seed(0)
    trainer = LatencyEstimatorTrainer(LatencyEstimator(num_layers=3))
    for step in range(50):
        trainer.train_step(batch(seed=step))
    return trainer.model


@pytest.mark.parametrize("grid", [GRID, GRID[::7]])
@pytest.mark.parametrize("budget_ms", [20.0, 100.0, 130.0, 200.0, 1000.0])
def test_found_are_exactly_those_that_fit(estimator, grid, budget_ms):
    found = feasible_configurations(estimator, SAMPLE, budget_ms, 5, grid=grid)
    wanted = {}
    for knobs in grid:  # one at a time
        one = estimator.predict_from_config(
            {
                "vision_tokens": SAMPLE.vision_tokens[knobs.tier],
                "text_tokens": 40,
                "tier": int(knobs.tier),
                "top_k": knobs.top_k,
                "num_active_blocks": knobs.num_blocks,
            }
        )
        prefill, decode = one["T_prefill_total"].item(), one["T_decode_per_token"].item()
        if (budget_ms - prefill) / decode >= 5:
            wanted[knobs] = (budget_ms - prefill) / decode
    assert {one.knobs for one in found} == set(wanted)
    lengths = [one.max_output_tokens for one in found]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths == pytest.approx(sorted(wanted.values(), reverse=True), rel=1e-4)


def test_senseless_searches_are_refused(estimator):
    with pytest.raises(ValueError, match="no vision tokens for tier medium, high"):
        feasible_configurations(estimator, replace(SAMPLE, vision_tokens={Tier.LOW: 1}), 100, 5)
    with pytest.raises(ValueError, match="grid is empty"):
        feasible_configurations(estimator, SAMPLE, 100, 5, grid=())
    with pytest.raises(ValueError, match="latency_budget"):
        feasible_configurations(estimator, SAMPLE, float("nan"), 5)


def test_225_configurations_take_under_five_milliseconds(estimator):
    times_ms = []
    for _ in range(30):
        start = time.thread_time()  # other tests may run beside this one
        assert feasible_configurations(estimator, SAMPLE, 1e4, 5, grid=GRID)
        times_ms.append((time.thread_time() - start) * 1e3)
    print(f"225 configurations: {median(times_ms):.2f} ms")
    assert median(times_ms) < 5

import time
from dataclasses import replace
from statistics import median

import pytest
import torch

from envs.spec import TIERS, Tier
from rollout.latency.estimator import LatencyEstimator, LatencyEstimatorTrainer
from rollout.latency.records import parse_record
from rollout.latency.search import (
    KNOB_GRID,
    PROFILING_GRID,
    Configuration,
    SampleTokens,
    accuracies_of,
    feasible_configurations,
    most_accurate_configuration,
)
from tests.rollout.latency.test_estimator import batch
from tests.rollout.latency.test_records import EXAMPLE

SAMPLE = SampleTokens(text_tokens=40, vision_tokens=dict(zip(TIERS, (200, 400, 700), strict=True)))


@pytest.fixture(scope="module")
def estimator():
    torch.manual_seed(0)
    trainer = LatencyEstimatorTrainer(LatencyEstimator(num_layers=3))
    for step in range(50):
        trainer.train_step(batch(seed=step))
    return trainer.model


@pytest.mark.parametrize("grid", [PROFILING_GRID, KNOB_GRID])
@pytest.mark.parametrize("budget_ms", [20.0, 100.0, 130.0, 200.0, 1000.0])
def test_found_are_exactly_those_that_fit(estimator, grid, budget_ms):
    found = feasible_configurations(estimator, SAMPLE, budget_ms, 5, grid=grid)
    wanted = {}
    for configuration in grid:  # one at a time
        one = estimator.predict_from_config(
            {
                "vision_tokens": SAMPLE.vision_tokens[configuration.tier],
                "text_tokens": 40,
                "tier": int(configuration.tier),
                "top_k": configuration.top_k,
                "num_active_blocks": configuration.num_active_blocks,
            }
        )
        prefill, decode = one["T_prefill_total"].item(), one["T_decode_per_token"].item()
        if (budget_ms - prefill) / decode >= 5:
            wanted[configuration] = (budget_ms - prefill) / decode
    assert {one.configuration for one in found} == set(wanted)
    lengths = [one.max_output_tokens for one in found]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths == pytest.approx(sorted(wanted.values(), reverse=True), rel=1e-4)


def test_grids():
    assert len(PROFILING_GRID) == 75
    assert len(KNOB_GRID) == 225
    assert len(set(PROFILING_GRID)) == 75
    assert len(set(KNOB_GRID)) == 225


def test_the_most_accurate_of_the_feasible_is_chosen(estimator):
    cheap = Configuration(tier=Tier.LOW, top_k=4, num_active_blocks=8)
    middle = Configuration(tier=Tier.MEDIUM, top_k=4, num_active_blocks=8)
    dear = Configuration(tier=Tier.HIGH, top_k=12, num_active_blocks=16)
    accuracies = {cheap: 0.3, middle: 0.5, dear: 0.9}

    found = feasible_configurations(estimator, SAMPLE, 1e6, 5, grid=tuple(accuracies))
    totals_ms = {one.configuration: one.prefill_ms + 5 * one.decode_per_token_ms for one in found}
    assert totals_ms[cheap] < totals_ms[middle] < totals_ms[dear]

    def choose(budget_ms):
        best = most_accurate_configuration(estimator, SAMPLE, budget_ms, 5, accuracies=accuracies)
        return best and best.configuration

    assert choose(1.0) is None
    for configuration, total_ms in totals_ms.items():
        assert choose(total_ms + 0.1) == configuration


def test_of_equally_accurate_ones_the_fastest(estimator):
    accuracies = dict.fromkeys(PROFILING_GRID, 0.5)
    chosen = most_accurate_configuration(estimator, SAMPLE, 1e4, 5, accuracies=accuracies)
    assert chosen == feasible_configurations(estimator, SAMPLE, 1e4, 5)[0]


def test_accuracies_of_a_profile():
    record = parse_record(EXAMPLE | {"score": 1.0, "insertion_position": 2}, "okvqa", 0)
    other = replace(record, insertion_position=1)
    accuracies = accuracies_of([record, replace(record, score=0.5), other])
    key = Configuration(tier=Tier.LOW, top_k=4, num_active_blocks=12, insertion_position=2)
    assert accuracies == {key: 0.75, replace(key, insertion_position=1): 1.0}
    with pytest.raises(ValueError, match="no score"):
        accuracies_of([replace(record, score=None)])


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
        start = time.perf_counter()
        assert feasible_configurations(estimator, SAMPLE, 1e4, 5, grid=KNOB_GRID)
        times_ms.append((time.perf_counter() - start) * 1e3)
    print(f"225 configurations: {median(times_ms):.2f} ms")
    assert median(times_ms) < 5

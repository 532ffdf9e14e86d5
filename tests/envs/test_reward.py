"""Rewards against numbers worked out by hand."""

import numpy as np
import pytest

from envs.reward import (
    BudgetReward,
    LambdaByBudget,
    PIDConfig,
    PIDLambda,
    ReferenceReward,
    budget_reward,
    reference_reward,
)
from envs.spec import FULL_KNOBS, BudgetRange, BudgetSampler


@pytest.mark.parametrize(
    ("score", "latency_ms", "expected"),
    [
        (1.0, 80, 1.0),
        (0.5, 100, 0.5),
        (1.0, 120, 1.0 - 0.7 - 0.1),
        (0.0, 150, -0.7 - 0.25),
        (1.0, 400, 1.0 - 0.7 - 0.5),
    ],
)
def test_budget_reward(score, latency_ms, expected):
    reward = budget_reward(score, latency_ms, 100, violation_cost=0.7)
    assert reward.total == pytest.approx(expected)
    assert sum(reward.components.values()) == pytest.approx(expected)
    assert reward.score == pytest.approx(score)


def test_budget_reward_takes_arrays():
    reward = budget_reward([1, 0], [50, 110], [100, 100], violation_cost=1)
    assert np.allclose(reward.total, [1, -1.05])


def test_reference_reward_within_and_over_budget():
    knobs = {"max_crops": 12, "top_k": 8, "num_blocks": 16}
    complexity = -0.05 * (1 + 0.25 + 1) / 3
    within = reference_reward(1.0, 80, 100, **knobs)
    sigmoid = 1 / (1 + np.exp(2.0))
    assert within.total == pytest.approx(1 - 0.5 * sigmoid + 0.1 * 0.2 + complexity)
    over = reference_reward(1.0, 120, 100, **knobs)
    sigmoid = 1 / (1 + np.exp(-2.0))
    assert over.total == pytest.approx(1 - 0.5 * sigmoid - 10 * 0.04 + complexity)
    assert sum(over.components.values()) == pytest.approx(over.total)


def test_reference_reward_is_finite_far_from_the_budget():
    knobs = {"max_crops": 3, "top_k": 4, "num_blocks": 12}
    assert np.isfinite(reference_reward(0.0, 1e6, 1, **knobs).total)


def test_reward_functions_agree_with_the_pure_forms():
    ours = BudgetReward(violation_cost=0.3)([1.0], [110.0], [100.0], [FULL_KNOBS])
    assert ours.total == pytest.approx(1 - 0.3 - 0.05)
    reference = ReferenceReward()([1.0], [110.0], [100.0], [FULL_KNOBS])
    expected = reference_reward(1.0, 110, 100, max_crops=12, top_k=8, num_blocks=16)
    assert reference.total == pytest.approx(expected.total)


def test_lambda_follows_the_pid_rule():
    pid = PIDLambda(PIDConfig(target=0.1, kp=1, ki=0.5, kd=2, smoothing=0.5, initial=0.2))
    # rate 0.5*0.1 + 0.5*0.5 = 0.3; error 0.2; integral 0.2+0.1; rise 0.2
    assert pid.update(0.5) == pytest.approx(0.3 + 0.2 + 0.4)
    # rate 0.15; error 0.05; integral 0.325; no rise
    assert pid.update(0.0) == pytest.approx(0.325 + 0.05)
    for _ in range(100):
        pid.update(0.0)
    assert pid.value == 0


def test_lambda_is_bounded_and_resumes_exactly():
    pid = PIDLambda()
    for _ in range(1000):
        pid.update(1.0)
    assert pid.value == pid.config.maximum
    again = PIDLambda()
    again.load_state_dict(pid.state_dict())
    assert again.update(0.2) == pid.update(0.2)
    with pytest.raises(ValueError, match="lacks integral"):
        again.load_state_dict({"value": 1, "rate": 0})


BUDGETS = BudgetSampler(range=BudgetRange(low_ms=10, high_ms=50), feasible_from_ms=20)


def test_each_range_of_budgets_steers_its_own_lambda():
    config = PIDConfig(target=0.1, kp=0, ki=1, smoothing=0, initial=1.0, minimum=0.5, bins=3)
    steering = LambdaByBudget(config, BUDGETS)
    # Ranges 20..30, 30..40, 40..50 ms: rates 0.3 and none and 0; 15 ms is infeasible.
    steering.update([22, 28, 45, 15], [0.2, 0.4, 0.0, 1.0])
    assert steering.costs([15, 20, 35, 50, 60]).tolist() == pytest.approx([1.2, 1.2, 1, 0.9, 0.9])
    for _ in range(10):
        steering.update([45], [0.0])
    assert steering.costs(45) == 0.5
    assert steering.scalars()["reward/lambda"] == pytest.approx((1.2 + 1 + 0.5) / 3)
    assert steering.scalars()["lambda/budget_40_to_50_ms"] == 0.5
    reward = BudgetReward(violation_cost=steering.costs)([1, 1], [30, 50], [25, 45], [FULL_KNOBS])
    assert reward.components["violation"].tolist() == pytest.approx([-1.2, -0.5])


def test_lambda_by_budget_resumes_exactly():
    config = PIDConfig(bins=2)
    steering, again = (LambdaByBudget(config, BUDGETS) for _ in range(2))
    steering.update([25, 45], [0.5, 0.0])
    again.load_state_dict(steering.state_dict())
    assert again.costs([25, 45]).tolist() == steering.costs([25, 45]).tolist()
    with pytest.raises(ValueError, match="2 budget ranges, the configuration 1"):
        LambdaByBudget(PIDConfig(), BUDGETS).load_state_dict(steering.state_dict())


def test_bounds_of_lambda_must_be_in_order():
    with pytest.raises(ValueError, match=r"minimum 2\.0.*at least one bin"):
        PIDConfig(minimum=2.0, initial=0.5)

"""Rewards against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest
from scipy.special import ndtri

from envs.reward import (
    BudgetReward,
    ExpectedOutcome,
    ReferenceReward,
    budget_reward,
    reference_reward,
    violation_rate,
)
from envs.spec import FULL_KNOBS


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


def test_where_nothing_fits_the_fastest_answer_earns_most():
    latencies = [110, 130, 160, 250]
    reward = budget_reward([0, 1, 1, 0], latencies, 100, violation_cost=0.7, feasible=False)
    assert reward.total.tolist() == pytest.approx([-0.05, -0.15, -0.3, -0.5])
    mixed = budget_reward([1, 1], [120, 120], 100, violation_cost=0.7, feasible=[True, False])
    assert mixed.total.tolist() == pytest.approx([0.2, -0.1])


def test_violation_rates_count_feasible_episodes():
    over = np.array([[True, True], [False, True], [True, False]])
    feasible = np.array([[True, False], [True, False], [False, False]])
    assert violation_rate(over, feasible) == pytest.approx(1 / 2)
    by_column = violation_rate(over, feasible, axis=0)
    assert by_column[0] == pytest.approx(1 / 2)
    assert np.isnan(by_column[1])
    assert violation_rate([True, False], True) == pytest.approx(0.5)


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


def simulated(score, log_ratio, spread, cheapest, cost, rng):
    """The mean of `budget_reward` over draws of an error that both configurations share."""
    error = spread * rng.standard_normal(1_000_000)
    right = rng.random(len(error)) < score
    feasible = np.exp(cheapest + error) <= 1
    latency = np.exp(log_ratio + error)
    return budget_reward(right, latency, 1, violation_cost=cost, feasible=feasible).total.mean()


@pytest.mark.parametrize("spread", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("log_ratio", [-0.4, -0.05, 0.0, 0.05, 0.3, 0.8])
def test_the_expected_reward_is_that_of_a_simulation(spread, log_ratio):
    rng = np.random.default_rng(0)
    for score, below, cost in ((0.9, 0.0, 1.0), (0.9, 0.5, 1.0), (0.3, 0.1, 0.4)):
        outcome = ExpectedOutcome.of(score, log_ratio, spread, cheapest_log_ratio=log_ratio - below)
        expected = outcome.reward(cost)
        found = simulated(score, log_ratio, spread, log_ratio - below, cost, rng)
        assert expected == pytest.approx(found, abs=0.002)


def test_the_cheapest_configuration_never_violates_what_is_feasible():
    at_the_budget = ExpectedOutcome.of(0.8, 0.0, 0.05, cheapest_log_ratio=0.0)
    assert at_the_budget.violation == 0
    assert at_the_budget.reward(1.0) == at_the_budget.reward(0.0)


def test_a_certain_latency_gives_the_reward_itself():
    for ratio in (0.5, 1.2, 1.7, 3.0):
        outcome = ExpectedOutcome.of(0.6, np.log(ratio), 0.0, cheapest_log_ratio=-1.0)
        assert outcome.reward(0.7) == pytest.approx(
            budget_reward(0.6, ratio, 1, violation_cost=0.7).total
        )


def random_episodes(count=2000, seed=0):
    """Scores, latencies, budgets and feasibility, of which many lie at a budget or far above it."""
    rng = np.random.default_rng(seed)
    budget_ms = rng.uniform(20, 100, count)
    ratio = np.where(rng.random(count) < 0.2, 1.0, rng.uniform(0.2, 3.0, count))
    latency_ms = budget_ms * ratio
    return rng.random(count), latency_ms, budget_ms, rng.random(count) < 0.8


def lambda_of(budgets_ms):
    return 0.3 + np.asarray(budgets_ms) / 200


def test_without_a_price_the_reward_is_the_same_to_the_bit():
    score, latency_ms, budget_ms, feasible = random_episodes()
    violation = -lambda_of(budget_ms) * ((latency_ms > budget_ms) & feasible)
    excess = -0.5 * np.clip(latency_ms / budget_ms - 1, 0, 1)
    asked = (score, latency_ms, budget_ms, [FULL_KNOBS] * len(score), feasible)
    unpriced = BudgetReward(violation_cost=lambda_of)(*asked)
    free = BudgetReward(violation_cost=lambda_of, full_ms=80.0)(*asked, np.zeros(len(score)))
    pure = budget_reward(*asked[:3], violation_cost=lambda_of(budget_ms), feasible=feasible)
    for reward in (unpriced, free, pure):
        assert reward.score.tobytes() == (score * feasible).tobytes()
        assert reward.constraint.tobytes() == (violation + excess).tobytes()


def test_without_a_price_the_expected_reward_is_the_same_to_the_bit():
    score, latency_ms, budget_ms, _ = random_episodes()
    log_ratio = np.log(latency_ms / budget_ms)
    outcome = ExpectedOutcome.of(score, log_ratio, 0.1, cheapest_log_ratio=log_ratio - 0.2)
    bare = outcome.score - lambda_of(budget_ms) * outcome.violation - 0.5 * outcome.overshoot
    unpriced = BudgetReward(violation_cost=lambda_of).expected(outcome, budget_ms)
    free = BudgetReward(violation_cost=lambda_of, full_ms=80.0).expected(outcome, budget_ms, 0.0)
    assert unpriced.tobytes() == free.tobytes() == bare.tobytes()


def test_a_price_is_for_the_time_of_a_full_answer():
    """At .1, an answer that takes half as long as the full one costs .05, feasible or not."""
    worth = BudgetReward(violation_cost=0.7, full_ms=80.0)
    asked = ([1.0, 1.0, 1.0], [40.0, 120.0, 120.0], [100.0] * 3, [FULL_KNOBS] * 3)
    reward = worth(*asked, [True, True, False], [0.1, 0.1, 0.2])
    assert reward.components["time"].tolist() == pytest.approx([-0.05, -0.15, -0.3])
    assert reward.total.tolist() == pytest.approx([0.95, 1 - 0.7 - 0.1 - 0.15, -0.1 - 0.3])
    assert sum(reward.components.values()).tolist() == pytest.approx(reward.total.tolist())


def test_a_price_needs_the_latency_that_it_is_for():
    asked = ([1.0], [40.0], [100.0], [FULL_KNOBS], True)
    assert BudgetReward()(*asked, 0.0).total == 1.0
    with pytest.raises(ValueError, match="give the full latency in ms"):
        BudgetReward()(*asked, 0.1)
    outcome = ExpectedOutcome.of(1.0, -0.5, 0.1, cheapest_log_ratio=-1.0)
    with pytest.raises(ValueError, match="give the full latency in ms"):
        BudgetReward().expected(outcome, 100.0, 0.1)


def test_a_reward_cannot_be_changed_by_those_who_share_it():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BudgetReward().violation_cost = 0.1


BUDGET_MS, FULL_MS = 40.0, 60.0
STRATA = (np.arange(1_000_000) + 0.5) / 1_000_000
"""Levels of a normal error, evenly spaced: nothing is left to chance but the answers."""


@pytest.mark.parametrize("spread", [0.03, 0.1, 0.3])
@pytest.mark.parametrize(
    ("log_ratio", "below"),
    [(-0.4, 0.1), (-0.05, 0.03), (0.0, 0.0), (0.02, 0.05), (0.05, 0.1), (0.4, 0.5)],
)
def test_the_expected_reward_with_a_price_is_that_of_a_simulation(spread, log_ratio, below):
    """Latencies around the budget, on samples for which it is feasible or not."""
    error = spread * ndtri(STRATA)
    right = np.random.default_rng(0).random(len(error)) < 0.8
    latency_ms = BUDGET_MS * np.exp(log_ratio + error)
    feasible = BUDGET_MS * np.exp(log_ratio - below + error) <= BUDGET_MS
    outcome = ExpectedOutcome.of(0.8, log_ratio, spread, cheapest_log_ratio=log_ratio - below)
    worth = BudgetReward(violation_cost=lambda_of, full_ms=FULL_MS)
    for price in (0.3, 1.0, 2.0):
        found = worth(right, latency_ms, BUDGET_MS, [], feasible, price).total.mean()
        assert worth.expected(outcome, BUDGET_MS, price) == pytest.approx(found, abs=0.002)


def test_expected_rewards_take_arrays_of_budgets_and_prices():
    worth = BudgetReward(violation_cost=lambda_of, full_ms=FULL_MS)
    log_ratio = np.array([[-0.3, 0.1], [0.0, 0.4]])
    budgets_ms, prices = np.array([[30.0], [50.0]]), np.array([[0.0], [1.5]])
    outcome = ExpectedOutcome.of(0.7, log_ratio, 0.1, cheapest_log_ratio=log_ratio - 0.2)
    together = worth.expected(outcome, budgets_ms, prices)
    for row in range(2):
        for column in range(2):
            mean = log_ratio[row, column]
            alone = ExpectedOutcome.of(0.7, mean, 0.1, cheapest_log_ratio=mean - 0.2)
            expected = worth.expected(alone, budgets_ms[row, 0], prices[row, 0])
            assert together[row, column] == pytest.approx(float(expected))


def test_a_certain_latency_at_its_budget_is_no_violation():
    outcome = ExpectedOutcome.of(0.6, 0.0, 0.0, cheapest_log_ratio=-1.0)
    assert (outcome.score, outcome.violation, outcome.ratio) == (0.6, 0.0, 1.0)
    measured = budget_reward(0.6, 50.0, 50.0, violation_cost=1.0).total
    assert outcome.reward(1.0) == pytest.approx(measured, abs=1e-8)
    infeasible = ExpectedOutcome.of(0.6, 0.5, 0.0, cheapest_log_ratio=1e-9)
    assert (infeasible.score, infeasible.violation) == (0.0, 0.0)

"""The PID rule against numbers worked out by hand."""

import pytest

from envs.budgets import BudgetRange, BudgetSampler
from envs.reward import BudgetReward
from envs.spec import FULL_KNOBS
from learner.lambda_control import LambdaControl, PIDConfig

BUDGETS = BudgetSampler(range=BudgetRange(low_ms=10, high_ms=50), uniform_from_ms=20)


def after(control, *rates):
    """Lambda after steps with these violation rates at one budget."""
    for rate in rates:
        control.update([30], [rate])
    return control.violation_cost(30)


def test_lambda_follows_the_pid_rule():
    config = PIDConfig(target=0.1, kp=1, ki=0.5, kd=2, smoothing=0.5, initial=0.2)
    control = LambdaControl(config, BUDGETS)
    # rate 0.5*0.1 + 0.5*0.5 = 0.3; error 0.2; integral 0.2+0.1; rise 0.2
    assert after(control, 0.5) == pytest.approx(0.3 + 0.2 + 0.4)
    # rate 0.15; error 0.05; integral 0.325; no rise
    assert after(control, 0.0) == pytest.approx(0.325 + 0.05)
    assert after(control, *[0.0] * 100) == 0


def test_lambda_is_bounded_and_resumes_exactly():
    control, again = (LambdaControl(PIDConfig(), BUDGETS) for _ in range(2))
    assert after(control, *[1.0] * 1000) == control.config.maximum
    again.load_state_dict(control.state_dict())
    assert after(again, 0.2) == after(control, 0.2)
    with pytest.raises(ValueError, match="lacks integrals"):
        again.load_state_dict({"values": [1], "rates": [0]})


def test_each_range_of_budgets_steers_its_own_lambda():
    config = PIDConfig(target=0.1, kp=0, ki=1, smoothing=0, initial=1.0, minimum=0.5, bins=3)
    control = LambdaControl(config, BUDGETS)
    # Ranges 20..30, 30..40, 40..50 ms: rates 0.3 and none and 0; the last two are infeasible.
    control.update(
        [22, 18, 45, 15, 48], [0.2, 0.4, 0.0, 1.0, 1.0], [True, True, True, False, False]
    )
    assert control.violation_cost([15, 20, 35, 50, 60]).tolist() == pytest.approx(
        [1.2, 1.2, 1, 0.9, 0.9]
    )
    for _ in range(10):
        control.update([45], [0.0])
    assert control.violation_cost(45) == 0.5
    assert control.scalars()["reward/lambda"] == pytest.approx((1.2 + 1 + 0.5) / 3)
    assert control.scalars()["lambda/budget_40_to_50_ms"] == 0.5
    reward = BudgetReward(violation_cost=control.violation_cost)(
        [1, 1], [30, 50], [25, 45], [FULL_KNOBS]
    )
    assert reward.components["violation"].tolist() == pytest.approx([-1.2, -0.5])


def test_lambda_by_budget_resumes_exactly():
    config = PIDConfig(bins=2)
    control, again = (LambdaControl(config, BUDGETS) for _ in range(2))
    control.update([25, 45], [0.5, 0.0])
    again.load_state_dict(control.state_dict())
    assert again.violation_cost([25, 45]).tolist() == control.violation_cost([25, 45]).tolist()
    with pytest.raises(ValueError, match="2 budget ranges, the configuration 1"):
        LambdaControl(PIDConfig(), BUDGETS).load_state_dict(control.state_dict())


def test_bounds_of_lambda_must_be_in_order():
    with pytest.raises(ValueError, match=r"minimum 2\.0.*at least one bin"):
        PIDConfig(minimum=2.0, initial=0.5)

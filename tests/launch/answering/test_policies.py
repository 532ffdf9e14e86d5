"""What policies make of the price of a request."""

from dataclasses import replace

import pytest
import torch

from envs.calibration import SteadyTime
from envs.prices import PriceRange
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS
from launch.analysis.knob_table import KnobTable
from launch.answering.answerer import Answerer
from launch.answering.policies import ControllerPolicy, TablePolicy, known_price
from policy.budget_encoder import SINUSOID_DIM
from policy.controller import Controller
from tests.rollout import rig

RANGE = PriceRange(low=0.01, high=2.0)


@pytest.mark.parametrize("price", [0.0, 0.01, 0.3, 2.0])
def test_a_price_that_was_trained_is_taken_as_it_is(price):
    assert known_price(price, RANGE, pytest.fail) == price


@pytest.mark.parametrize(("price", "known"), [(1e-6, 0.01), (0.009, 0.01), (7.0, 2.0)])
def test_other_prices_are_the_nearest_trained_ones_which_is_said(price, known):
    said = []
    assert known_price(price, RANGE, said.append) == known
    assert said == [
        "the controller was trained for prices of 0 and 0.01 to 2: it chooses as if the price "
        f"were {known:g}"
    ]


def test_a_controller_without_prices_says_that_it_ignores_them():
    said = []
    assert known_price(0.3, None, said.append) == 0.0
    assert said == ["the controller was trained without prices: it ignores the price 0.3"]
    assert known_price(0.0, None, pytest.fail) == 0.0


@pytest.fixture(scope="module")
def executor():
    return rig.executor(max_new_tokens=2)


def test_a_table_chooses_by_the_price(executor):
    by_price = {0.0: KnobTable.fixed(FULL_KNOBS), 0.5: KnobTable.fixed(CHEAPEST_KNOBS)}
    answerer = Answerer(TablePolicy(executor, KnobTable.by_price(by_price), "a test"))
    asked = {"budget_ms": 50.0}
    for price, knobs in ((0.0, FULL_KNOBS), (0.4, FULL_KNOBS), (0.5, CHEAPEST_KNOBS)):
        answer = answerer.answer("what is it", price=price, **asked)
        assert (answer.knobs, answer.price) == (knobs, price)
        *_, streamed = answerer.stream("what is it", price=price, **asked)
        assert (streamed.knobs, streamed.price) == (knobs, price)
    unpriced = answerer.answer("what is it", **asked)
    assert (unpriced.knobs, unpriced.price) == (FULL_KNOBS, 0.0)


def test_the_warm_up_runs_a_tables_rows_of_every_price(executor, monkeypatch):
    ran = []
    monkeypatch.setattr(
        "launch.answering.policies.run_configurations",
        lambda _executor, _sample, configurations: ran.extend(configurations),
    )
    by_price = {0.0: KnobTable.fixed(FULL_KNOBS), 0.5: KnobTable.fixed(CHEAPEST_KNOBS)}
    TablePolicy(executor, KnobTable.by_price(by_price), "a test").warm_up(None, None)
    assert set(ran) == {CHEAPEST_KNOBS, FULL_KNOBS}


class Told(Controller):
    """A random controller whose choices depend strongly on prices; notes those that it sees."""

    def __init__(self, config):
        torch.manual_seed(0)
        super().__init__(config)
        for stage in (self.stage1, self.stage2):
            torch.nn.init.normal_(stage.heads.weight, std=1.0)
        with torch.no_grad():
            self.budget_encoder.mlp[0].weight[:, SINUSOID_DIM:].mul_(10)
        self.told = []

    def budget_tokens(self, budgets_ms_B, prices_B=None):
        self.told += prices_B.tolist()
        return super().budget_tokens(budgets_ms_B, prices_B)


def test_a_controller_chooses_by_the_price(executor):
    said, config = [], rig.controller().config
    controller = Told(replace(config, price_low=0.01, price_high=2.0, default_price=0.02))
    answerer = Answerer(ControllerPolicy(executor, controller, SteadyTime(), "it", said.append))
    asked = {"budget_ms": rig.BUDGETS.range.high_ms, "image": rig.NoiseTask().sample("t", 3).image}
    found = {p: answerer.answer("what is it", price=p, **asked) for p in (0.0, 0.02, 0.3, 2.0)}
    assert len({answer.knobs for answer in found.values()}) > 1
    assert [answer.price for answer in found.values()] == list(found)
    unpriced = answerer.answer("what is it", **asked)
    assert unpriced.price == 0.02, "what it was trained to be deployed with"
    assert unpriced.knobs == found[0.02].knobs
    assert said == []
    beyond = answerer.answer("what is it", price=9.0, **asked)
    assert beyond.knobs == found[2.0].knobs
    assert beyond.price == 9.0, "the answer tells what was asked for"
    assert len(said) == 1
    assert controller.told == pytest.approx([0.0, 0.02, 0.3, 2.0, 0.02, 2.0])


def test_a_controller_without_prices_has_none_by_default(executor):
    said = []
    policy = ControllerPolicy(executor, rig.controller(), SteadyTime(), "it", said.append)
    assert policy.default_price == 0.0
    answer = Answerer(policy).answer("what is it", budget_ms=50.0)
    assert (answer.price, said) == (0.0, [])


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_unusable_prices_are_refused(executor, price):
    policy = TablePolicy(executor, KnobTable.fixed(CHEAPEST_KNOBS), "a test")
    with pytest.raises(ValueError, match="finite number of at least 0"):
        Answerer(policy).answer("what", budget_ms=50.0, price=price)
    with pytest.raises(ValueError, match="finite number of at least 0"):
        next(iter(Answerer(policy).stream("what", budget_ms=50.0, price=price)))

"""Greedy sweeps at several prices, on a table."""

import numpy as np
import pytest
import torch

from envs.prices import PriceRange, PriceSampler
from launch.analysis.greedy_sweep import CHEAPEST_REPEATS, GreedySweep, greedy_sweep, greedy_sweeps
from policy.config import PolicySetup
from policy.controller import Controller
from policy.weights import PolicyWeights, weights_sha256
from rollout.simulation.table_samples import budgets_of
from tests import table_rig

PRICES = (0.0, 0.1, 1.0)
INDICES = (0, 3, 5, 8)


class Counted:
    """A fleet that notes what it is asked for."""

    def __init__(self, fleet):
        self.fleet, self.evaluated, self.cheapest = fleet, [], []

    def evaluate(self, requests, setup, weights):
        self.evaluated.append(list(requests))
        return self.fleet.evaluate(requests, setup, weights)

    def cheapest_ms(self, split, indices, repeats, calibration):
        self.cheapest.append((split, list(indices), repeats))
        return self.fleet.cheapest_ms(split, indices, repeats, calibration)


@pytest.fixture(scope="module")
def world():
    """A fleet, and a controller whose likeliest choices depend on budget and price."""
    table = table_rig.synthetic_table(12)
    budgets, prices = budgets_of(table), PriceSampler(range=PriceRange(low=0.01, high=2.0))
    setup = PolicySetup.of(table_rig.D_MODEL, 0, budgets, None, prices)
    torch.manual_seed(0)
    controller = Controller(setup.controller)
    for stage in (controller.stage1, controller.stage2):
        torch.nn.init.normal_(stage.heads.weight, std=1.0)
    arrays = controller.to_numpy()
    weights = PolicyWeights(version=0, sha256=weights_sha256(arrays), arrays=arrays)
    budgets_ms = budgets.evenly(3).tolist()
    return (
        table_rig.fleet_of(table),
        (setup, weights),
        {
            "split": "validation",
            "indices": INDICES,
            "budgets_ms": budgets_ms,
        },
    )


def assert_same(one: GreedySweep, other: GreedySweep):
    """Equal in everything but the order of measuring."""
    assert one.to_json() == other.to_json()
    assert np.array_equal(one.actions, other.actions)


def test_there_is_a_sweep_for_each_price_and_the_cheapest_is_measured_once(world):
    fleet, policy, asked = world
    counted = Counted(fleet)
    sweeps = greedy_sweeps(counted, *policy, **asked, prices=PRICES)
    assert [sweep.price for sweep in sweeps] == list(PRICES)
    assert counted.cheapest == [("validation", list(INDICES), CHEAPEST_REPEATS)]
    (requests,) = counted.evaluated
    ids = [request.group_id for request in requests]
    assert len(set(ids)) == len(ids) == len(INDICES) * 3 * len(PRICES)
    for sweep, price in zip(sweeps, PRICES, strict=True):
        assert sweep.scores.shape == sweep.latencies_ms.shape == (4, 3)
        assert sweep.indices == INDICES
        assert_same(sweep, greedy_sweep(fleet, *policy, **asked, price=price))
    assert not np.array_equal(sweeps[0].actions, sweeps[2].actions), "the controller sees prices"


def test_by_default_time_is_free(world):
    fleet, policy, asked = world
    assert_same(
        greedy_sweep(fleet, *policy, **asked), greedy_sweep(fleet, *policy, **asked, price=0.0)
    )


def test_a_sample_that_cannot_be_measured_is_left_out_at_every_price(world, monkeypatch):
    fleet, policy, asked = world
    whole = greedy_sweeps(fleet, *policy, **asked, prices=PRICES)
    measure = fleet.cheapest_ms

    def torn(*arguments):
        cheapest_NR = measure(*arguments)
        cheapest_NR[1, 2] = np.nan
        return cheapest_NR

    monkeypatch.setattr(fleet, "cheapest_ms", torn)
    for sweep, before in zip(
        greedy_sweeps(fleet, *policy, **asked, prices=PRICES), whole, strict=True
    ):
        assert_same(sweep, before.rows([0, 2, 3]))
        assert sweep.indices == (0, 5, 8)
        assert sweep.price == before.price


def test_scalars_charge_the_time_of_answers(world):
    fleet, policy, asked = world
    (sweep,) = greedy_sweeps(fleet, *policy, **asked, prices=(1.0,))
    free, charged = sweep.scalars(), sweep.scalars(cost_per_ms=0.01)
    mean_ms = float(sweep.latencies_ms.mean())
    assert free["at_a_glance/device_time_held_out_ms"] == pytest.approx(mean_ms)
    name = "at_a_glance/reward_held_out"
    assert free[name] - charged[name] == pytest.approx(0.01 * mean_ms)
    assert {k: v for k, v in free.items() if k != name} == {
        k: v for k, v in charged.items() if k != name
    }


def test_parts_of_a_sweep_keep_its_price(world):
    fleet, policy, asked = world
    parts = [
        greedy_sweep(fleet, *policy, **asked | {"indices": indices}, price=0.1)
        for indices in (INDICES[:2], INDICES[2:])
    ]
    assert_same(GreedySweep.joined(parts), greedy_sweep(fleet, *policy, **asked, price=0.1))

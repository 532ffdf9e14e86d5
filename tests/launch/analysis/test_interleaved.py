"""Controller and rivals in turns, at several prices, on a table."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from envs.prices import PriceRange, PriceSampler
from launch.analysis.greedy_sweep import greedy_sweeps
from launch.analysis.interleaved import SAMPLES_A_TURN, Live, run_live, table_factor
from launch.analysis.rivals import choose_rivals
from policy.config import PolicySetup
from policy.controller import Controller
from policy.weights import PolicyWeights, weights_sha256
from rollout.simulation.table_fleet import TableFleet
from rollout.simulation.table_samples import budgets_of
from tests import table_rig

PRICES = (0.0, 0.3, 2.0)
NUM_SAMPLES = SAMPLES_A_TURN + 3
SLOWER = 1.25


class MeasuringTable(TableFleet):
    """Single configurations take longer than the table says; notes those that ran."""

    def __init__(self, table):
        like = table_rig.fleet_of(table)
        super().__init__({"test": like.splits["validation"]}, like.blocks)
        self.table, self.ran = table, []

    def profile_each(self, plan, split, what, calibration=None):
        assert split == "test"
        for index, configurations in plan:
            self.ran.append((index, configurations))
            columns = [self.table.column(knobs) for knobs in configurations]
            yield [
                SimpleNamespace(
                    score=self.table.scores[index, column],
                    calibrated_ms=SLOWER * self.table.latencies_ms[index, column],
                )
                for column in columns
            ]


@pytest.fixture(scope="module")
def world():
    table = table_rig.synthetic_table(NUM_SAMPLES)
    budgets, prices = budgets_of(table), PriceSampler(range=PriceRange(low=0.01, high=2.0))
    setup = PolicySetup.of(table_rig.D_MODEL, 0, budgets, None, prices)
    torch.manual_seed(0)
    arrays = Controller(setup.controller).to_numpy()
    weights = PolicyWeights(version=0, sha256=weights_sha256(arrays), arrays=arrays)
    budgets_ms = budgets.evenly(2)
    found = choose_rivals(table, budgets_ms, PRICES)
    rivals = {name: found[name] for name in ("lookup", "lookup by task")}
    fleet = MeasuringTable(table)
    live = run_live(
        *(fleet, setup, weights, rivals),
        indices=range(NUM_SAMPLES),
        budgets_ms=budgets_ms,
        prices=PRICES,
    )
    return fleet, (setup, weights), rivals, budgets_ms, live


def test_the_controller_runs_at_every_price(world):
    fleet, policy, _, budgets_ms, live = world
    assert list(live) == list(PRICES)
    places = {"split": "test", "indices": range(NUM_SAMPLES), "budgets_ms": budgets_ms.tolist()}
    sweeps = greedy_sweeps(fleet, *policy, **places, prices=PRICES)
    for sweep, (price, found) in zip(sweeps, live.items(), strict=True):
        assert isinstance(found, Live)
        assert found.result.price == price
        assert found.result.to_json() == sweep.to_json()


def test_rivals_have_the_episodes_of_their_choices_at_the_price(world):
    fleet, _, rivals, budgets_ms, live = world
    for price, found in live.items():
        for name, (scores_SK, latencies_SK) in found.rivals.items():
            chosen = np.array(
                [
                    [fleet.table.column(rivals[name].at(ms, task, price)) for ms in budgets_ms]
                    for task in found.result.tasks
                ]
            )
            rows = np.array(found.result.indices)[:, None]
            assert np.array_equal(scores_SK, fleet.table.scores[rows, chosen])
            assert np.allclose(latencies_SK, SLOWER * fleet.table.latencies_ms[rows, chosen])
        assert set(found.outcomes()) == {"controller", *rivals}
    by_price = [found.outcomes()["lookup"].mean_ms for found in live.values()]
    assert by_price[2] < by_price[0]


def test_a_configuration_that_several_choose_runs_once_on_each_sample(world):
    fleet, _, rivals, budgets_ms, _ = world
    assert [index for index, _ in fleet.ran] == list(range(NUM_SAMPLES))
    for index, configurations in fleet.ran:
        task = fleet.table.tasks[index]
        wanted = {r.at(ms, task, p) for r in rivals.values() for ms in budgets_ms for p in PRICES}
        assert len(configurations) == len(wanted)
        assert set(configurations) == wanted


def test_the_ratio_to_the_table_is_that_of_the_choices_at_the_price(world):
    fleet, _, rivals, _, live = world
    for found in live.values():
        assert table_factor(found, rivals, fleet.table) == pytest.approx(SLOWER)


def test_by_default_time_is_free(world):
    fleet, policy, rivals, budgets_ms, live = world
    fleet = MeasuringTable(fleet.table)
    found = run_live(fleet, *policy, rivals, indices=range(NUM_SAMPLES), budgets_ms=budgets_ms)
    assert list(found) == [0.0]
    assert found[0.0].result.to_json() == live[0.0].result.to_json()

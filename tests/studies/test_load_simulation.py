"""The queue in simulation: its price under a rate that changes, and what that is worth."""

import numpy as np
import pytest

from envs.spec import FULL_KNOBS
from launch.analysis.knob_table import KnobTable
from studies.load_simulation import (
    STEP,
    Arrival,
    LoadSimulationConfig,
    PriceByLoad,
    Static,
    World,
    goodput,
    price_over_time,
    simulate,
)


@pytest.fixture(scope="module")
def world():
    return World(LoadSimulationConfig(seconds=30.0, seeds=3))


def test_the_price_follows_a_step_of_the_load_and_comes_back():
    times_s, prices = np.array(price_over_time(LoadSimulationConfig())).T

    def within(start_s, end_s):
        return prices[(times_s >= start_s) & (times_s < end_s)]

    assert [seconds for _, seconds in STEP] == [20, 20, 20]
    assert within(0, 20).max() < 0.1
    plateau = within(26, 40)
    assert plateau.mean() > 0.5
    assert plateau.std() < 0.1, "it oscillates"
    assert within(48, 60).max() < 0.1, "it does not come back"


def test_pricing_by_load_pays_where_requests_wait_and_costs_nothing_else(world):
    table = world.controller()
    curve = world.curve(table)
    for rate, gain in ((4.0, 0.99), (16.0, 1.0), (26.0, 1.01)):
        priced = goodput(world, [lambda: PriceByLoad(world, table, curve)], rate)
        best_static = goodput(
            world, [lambda one=one: Static(world, one) for one in world.static_tables()], rate
        )
        assert priced.mean() > gain * best_static.mean(), rate


def test_one_replica_answers_one_at_a_time_by_hand(world):
    column = world.column_of[FULL_KNOBS]
    sample = next(row for row, scores in enumerate(world.scores) if scores[column] == 1)
    needed_s = (world.wall_ms[sample][column] + world.config.overhead_ms) / 1e3
    task = world.asked.tasks[sample]

    def arrivals(*budgets_s):
        return [Arrival(at_s=0.0, due_s=one, sample=sample, task=task) for one in budgets_s]

    def right(*budgets_s):
        found = simulate(world, Static(world, KnobTable.fixed(FULL_KNOBS)), arrivals(*budgets_s))
        return found.right, found.num_late + found.num_dropped

    assert right(1.01 * needed_s) == (1, 0)
    assert right(2.01 * needed_s, 1.01 * needed_s) == (2, 0)
    assert right(1.99 * needed_s, 1.01 * needed_s) == (1, 1)

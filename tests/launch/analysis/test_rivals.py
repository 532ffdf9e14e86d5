"""Lookup tables, static configurations and oracles, on a table worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Knobs
from launch.analysis import bounds, rivals
from launch.analysis.knob_table import KnobTable
from launch.analysis.outcomes import outcome_on
from rollout.profiling.profile_table import ProfileTable
from rollout.simulation.table_samples import budgets_of
from tests import table_rig

MIDDLE = Knobs(tier=1, position=1, top_k=6, num_blocks=14)
BUDGETS = np.array([10.0, 25.0, 60.0])
EVERY = np.ones(3, dtype=bool)


@pytest.fixture
def table():
    return ProfileTable(
        configurations=(CHEAPEST_KNOBS, MIDDLE, FULL_KNOBS),
        sample_ids=("a", "b"),
        tasks=("easy", "hard"),
        prompts=("easy: ?", "hard: ?"),
        scores=np.array([[1, 1, 1], [0, 0, 1]], np.float32),
        latencies_ms=np.array([[9, 20, 50], [12, 24, 58]], np.float32),
        cheapest_ms=np.array([9.5, 11.5], np.float32),
    )


def test_violations_count_feasible_episodes(table):
    """At 10 ms the second sample is infeasible: only the first one counts."""
    assert table.feasible(BUDGETS).tolist() == [[True] * 3, [False, True, True]]
    cheapest = outcome_on(table, KnobTable.fixed(CHEAPEST_KNOBS), BUDGETS)
    assert cheapest.in_budget_accuracy.tolist() == [0.5, 0.5, 0.5]
    assert cheapest.violation.tolist() == [0, 0, 0]
    full = outcome_on(table, KnobTable.fixed(FULL_KNOBS), BUDGETS)
    assert full.in_budget_accuracy.tolist() == [0, 0, 1]
    assert full.violation.tolist() == [1, 1, 0]
    assert full.violation_rate == pytest.approx(3 / 5)


def test_lookup_takes_the_most_accurate_within_each_budget(table):
    found = rivals.lookup(table, BUDGETS, EVERY)
    assert found.knobs == ((CHEAPEST_KNOBS, CHEAPEST_KNOBS, FULL_KNOBS),)
    only_middle = np.array([False, True, False])
    assert rivals.lookup(table, BUDGETS, only_middle).knobs == ((MIDDLE,) * 3,)


def test_lookup_has_a_margin_of_its_own_at_each_budget():
    """One of ten samples is too slow for the better configuration at 20 ms, and not at 30 ms."""
    scores, latencies = np.zeros((10, 3), np.float32), np.full((10, 3), 99, np.float32)
    scores[:5, 0], scores[:, 1] = 1.0, 1.0
    latencies[:, 0], latencies[:, 1], latencies[0, 1] = 10, 15, 25
    names = tuple(map(str, range(10)))
    made = ProfileTable(
        configurations=(CHEAPEST_KNOBS, MIDDLE, FULL_KNOBS),
        sample_ids=names,
        tasks=("a",) * 10,
        prompts=names,
        scores=scores,
        latencies_ms=latencies,
        cheapest_ms=np.full(10, 10, np.float32),
    )
    found = rivals.lookup(made, np.array([20.0, 30.0]), EVERY)
    assert found.knobs == ((CHEAPEST_KNOBS, MIDDLE),)
    infeasible = replace(made, cheapest_ms=np.array([21] + [10] * 9, np.float32))
    assert rivals.lookup(infeasible, np.array([20.0]), EVERY).knobs == ((MIDDLE,),)


def test_lookup_by_task_is_drawn_to_the_mixture_by_its_shrinkage(table):
    free = rivals.lookup_by_task(table, BUDGETS, shrinkage=0.0)
    assert free.by_task["easy"] == ((CHEAPEST_KNOBS,) * 3,), "of equals the fastest"
    assert free.at(BUDGETS[2], "hard") == FULL_KNOBS
    alike = rivals.lookup_by_task(table, BUDGETS, shrinkage=1.0)
    assert alike.by_task["easy"] == alike.by_task["hard"]
    whole = rivals.lookup(table, BUDGETS, EVERY)
    assert [alike.at(ms, "unknown") for ms in BUDGETS] == list(whole.knobs[0])


def test_shrinkage_is_chosen_by_cross_validation():
    many = table_rig.synthetic_table(600)
    budgets = budgets_of(many).evenly(4)
    assert rivals.best_shrinkage(many, budgets) < 1, "kinds differ, and samples suffice"
    noise = np.random.default_rng(0).random(many.scores.shape) < 0.5
    guessing = replace(many, scores=noise.astype(np.float32), tasks=tuple("abcdef") * 100)
    assert rivals.best_shrinkage(guessing.rows(np.arange(60)), budgets) > 0


def test_rivals_are_chosen_without_the_test_table(table):
    found = rivals.choose_rivals(table, BUDGETS)
    assert set(found) == {
        "lookup",
        "lookup by task",
        "tier only",
        "top-k only",
        "blocks only",
        "static",
    }
    assert found["static"].knobs == ((CHEAPEST_KNOBS,) * 3,)
    assert found["tier only"].knobs == ((FULL_KNOBS,) * 3,), "the table has no other tier at full"


PRICES = (0.0, 0.1, 0.5, 2.0)


@pytest.fixture(scope="module")
def many():
    return table_rig.synthetic_table(120)


@pytest.fixture(scope="module")
def many_budgets(many):
    return budgets_of(many).evenly(4)


@pytest.fixture(scope="module")
def full_ms(many):
    return float(np.median(many.latencies_ms[:, many.column(FULL_KNOBS)]))


@pytest.fixture(scope="module")
def priced(many, many_budgets):
    return rivals.choose_rivals(many, many_budgets, PRICES)


def test_at_price_zero_rivals_are_those_chosen_without_a_price(many, many_budgets, priced):
    every = np.ones(len(many.configurations), dtype=bool)
    shrinkage = rivals.best_shrinkage(many, many_budgets)
    without = rivals.choose_rivals(many, many_budgets)
    assert without["lookup"] == rivals.lookup(many, many_budgets, every)
    by_task = rivals.lookup_by_task(many, many_budgets, shrinkage=shrinkage)
    assert without["lookup by task"] == by_task
    assert list(priced) == list(without)
    for name, table in without.items():
        assert table.prices == (0.0,)
        assert priced[name].prices == PRICES
        for task in ("", *sorted(set(many.tasks))):
            for budget_ms in many_budgets:
                assert priced[name].at(budget_ms, task, 0.0) == table.at(budget_ms, task), name


def test_at_a_high_price_rivals_are_faster(many, many_budgets, priced):
    for name, table in priced.items():
        mean_ms = [outcome_on(many, table, many_budgets, price).mean_ms for price in PRICES]
        assert mean_ms[-1] < mean_ms[0], name
        if name in ("lookup", "lookup by task"):
            assert mean_ms == sorted(mean_ms, reverse=True), name
            assert mean_ms[-1] < 0.9 * mean_ms[0], name


@pytest.mark.parametrize("name", ["lookup", "lookup by task", "static"])
def test_at_a_price_rivals_are_worth_more_than_those_chosen_without(
    many, many_budgets, full_ms, priced, name
):
    def worth(chosen_for, price):
        found = outcome_on(many, priced[name], many_budgets, chosen_for)
        return found.accuracy - price / full_ms * found.mean_ms

    for price in PRICES:
        assert worth(price, price) >= worth(0.0, price)
    assert worth(2.0, 2.0) > worth(0.0, 2.0) + 0.02


def test_the_price_is_for_the_full_configuration_of_the_profile_or_of_the_run(
    many, many_budgets, full_ms, priced
):
    stated = rivals.choose_rivals(many, many_budgets, (0.5,), full_ms)
    assert {name: table.knobs[0] for name, table in stated.items()} == {
        name: table.knobs[PRICES.index(0.5)] for name, table in priced.items()
    }
    slow = rivals.choose_rivals(many, many_budgets, (0.5,), full_ms=1e9)
    assert slow["lookup"].knobs[0] == priced["lookup"].knobs[0], "a ms costs next to nothing"


def test_the_cost_of_time_by_hand(table):
    """At 60 ms, full answers gain .5 and take 43.5 ms more; at 25 ms the cheapest is best."""
    for cost_per_ms, expected in ((0.01, FULL_KNOBS), (0.012, CHEAPEST_KNOBS)):
        found = rivals.lookup(table, BUDGETS, EVERY, cost_per_ms)
        assert found.knobs == ((CHEAPEST_KNOBS, CHEAPEST_KNOBS, expected),)
    columns_TK = rivals.best_by_task(table, BUDGETS, max_violation=0.05, cost_per_ms=0.012)
    assert columns_TK.tolist() == [[0, 0, 0], [0, 0, 2]], "the hard task gains 1 for 46 ms more"
    columns_TK = rivals.best_by_task(table, BUDGETS, max_violation=0.05, cost_per_ms=0.03)
    assert columns_TK.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_device_times_of_bounds(table):
    fixed = outcome_on(table, KnobTable.fixed(MIDDLE), BUDGETS)
    assert fixed.ms_by_sample.tolist() == [20, 24]
    assert fixed.mean_ms == 22
    assert fixed.to_json()["ms_by_sample"] == [20, 24]
    uniform = bounds.random_policy(table, BUDGETS)
    assert uniform.ms_by_sample == pytest.approx([(9 + 20 + 50) / 3, (12 + 24 + 58) / 3])
    # Of equally good configurations the fastest; the hard sample needs the full one at 60 ms.
    by_sample = bounds.oracle_per_sample(table, BUDGETS)
    assert by_sample.ms_by_sample == pytest.approx([9, (12 + 12 + 58) / 3])
    by_budget = bounds.oracle_per_budget(table, BUDGETS)
    assert by_budget.ms_by_sample == pytest.approx([(9 + 9 + 50) / 3, (12 + 12 + 58) / 3])
    by_task = bounds.oracle_per_task(table, BUDGETS)
    assert by_task.ms_by_sample == pytest.approx([9, (12 + 12 + 58) / 3])
    saving = bounds.oracle_per_task(table, BUDGETS, cost_per_ms=0.03)
    assert saving.ms_by_sample == pytest.approx([9, 12])
    named = bounds.named_statics(table, BUDGETS)
    assert [found.mean_ms for found in named.values()] == pytest.approx([10.5, 54, 10.5])


def test_oracles(table):
    by_budget = bounds.oracle_per_budget(table, BUDGETS)
    assert by_budget.in_budget_accuracy.tolist() == [0.5, 0.5, 1.0]
    by_sample = bounds.oracle_per_sample(table, BUDGETS)
    assert by_sample.in_budget_accuracy.tolist() == [0.5, 0.5, 1.0]
    assert by_sample.violation.tolist() == [0, 0, 0]


def test_differences_are_taken_sample_by_sample(table):
    full, cheapest = (
        outcome_on(table, KnobTable.fixed(knobs), BUDGETS) for knobs in (FULL_KNOBS, CHEAPEST_KNOBS)
    )
    assert full.by_sample == pytest.approx([1 / 3, 1 / 3])
    assert cheapest.by_sample == pytest.approx([1.0, 0.0])
    assert full.accuracy == pytest.approx(1 / 3)
    ahead = full.ahead_of(cheapest)
    assert ahead.mean == pytest.approx(-1 / 6)
    assert ahead.half_width == pytest.approx(1.96 * 0.5**0.5 / 2**0.5)  # of -2/3 and 1/3


def test_random_is_the_mean_over_configurations(table):
    outcome = bounds.random_policy(table, BUDGETS)
    assert outcome.in_budget_accuracy == pytest.approx([1 / 6, 2 / 6, 4 / 6])
    assert outcome.violation == pytest.approx([2 / 3, 1 / 3, 0])


def test_where_nothing_fits_the_fastest_gains_most(table):
    columns_TK = rivals.best_by_task(table, np.array([5.0]), max_violation=0.05)
    assert columns_TK.tolist() == [[0], [0]]


def test_under_a_scatter_a_latency_counts_by_its_chance(table):
    budgets = np.array([24.0])
    hard = rivals.constrained_gains(table, budgets, max_violation=1.0)
    soft = rivals.constrained_gains(table, budgets, max_violation=1.0, scatter=0.1)
    easy, middle = 0, 1
    assert hard[0, easy, middle] == pytest.approx(1.0, abs=1e-5)
    chance = 0.9659  # that 20 ms times exp(N(0, 0.1)) stays within 24 ms: ln(1.2) / 0.1 = 1.82
    assert soft[0, easy, middle] == pytest.approx(chance, abs=1e-3)
    steady = rivals.constrained_gains(table, budgets, max_violation=1.0, scatter=1e-6)
    assert steady[0, easy] == pytest.approx(hard[0, easy])


def test_the_oracle_per_task_is_a_bound_for_every_table_per_task():
    """Rivals pay for late answers that are wrong as well, the oracle's accuracy does not."""
    many = table_rig.synthetic_table(200)
    budgets = budgets_of(many).evenly(6)
    for cost in (0.0, 0.01):
        best = bounds.oracle_per_task(many, budgets, cost_per_ms=cost)
        for shrinkage in (0.0, 0.3):
            rival = rivals.lookup_by_task(many, budgets, shrinkage=shrinkage, cost_per_ms=cost)
            found = outcome_on(many, rival, budgets)
            worth, most = (o.accuracy - cost * o.mean_ms for o in (found, best))
            assert worth <= most + 1e-6

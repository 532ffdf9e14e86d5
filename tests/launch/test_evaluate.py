"""What the evaluation computes from latencies that it has measured."""

from dataclasses import replace

import numpy as np
import pytest

from launch.analysis.baselines import best_by_task, oracle_per_task, outcome
from launch.analysis.greedy_sweep import GreedySweep
from launch.analysis.interleaved import Turn, clock_factor, clock_floor
from launch.evaluate import live_outcomes, verdict
from launch.run.warm_start import gains
from tests import table_rig


@pytest.fixture(scope="module")
def table():
    return table_rig.synthetic_table(60)


def test_clock_factor_is_what_both_have_measured(table):
    columns = {"lookup": [3, 3, 70], "lookup with margin": [0, 3, 224]}
    live = {
        name: (table.scores[:, chosen], 1.25 * table.latencies_ms[:, chosen])
        for name, chosen in columns.items()
    }
    live["lookup"][1][:5] *= 10  # a slow moment
    assert clock_factor(live, columns, table) == pytest.approx(1.25)


def test_verdict_names_what_is_not_beaten(table):
    budgets = np.array([1e6])
    rng = np.random.default_rng(0)
    latencies = np.ones((60, 1))
    right, wrong = np.ones((60, 1)), np.zeros((60, 1))
    half = (rng.random((60, 1)) < 0.5).astype(float)
    found = {
        "controller": outcome(half, latencies, budgets),
        "random": outcome(wrong, latencies, budgets),
        "lookup with margin (live)": outcome(half, latencies, budgets),
    }
    text = verdict(found, replace(table, scores=np.ones_like(table.scores)), budgets)
    assert "DOES NOT BEAT every static configuration (1.000" in text
    assert "beats random (0.000" in text
    assert "DOES NOT BEAT the lookup table with margin" in text
    assert text.count("within chance") == 1
    assert "violations 0.0% at most" in text
    found["controller"] = outcome(right, latencies * 1e7, budgets)
    assert "violations 100.0% at most" in verdict(found, table, budgets)


def test_a_slow_turn_is_put_on_the_clock_of_the_first_measurement():
    """The second turn ran twice as slowly: it violates as measured, and not by its own clock."""
    budgets = np.array([10.0, 20.0])
    turns = []
    for slowdown in (1.0, 2.0):
        latencies = np.array([[8.0, 12.0]]) * slowdown
        result = GreedySweep(
            budgets_ms=budgets,
            scores=np.ones((1, 2)),
            latencies_ms=latencies,
            actions=np.zeros((1, 2, 4), int),
            tasks=("digits",),
            sample_ids=("one",),
        )
        live = {"lookup": (np.ones((1, 2)), latencies + slowdown)}
        turns.append(Turn(result=result, live=live, repeats_ms=[5.0 * slowdown], slowdown=slowdown))
    raw, steady = Turn.joined(turns), Turn.joined([turn.without_drift() for turn in turns])
    assert raw.repeats_ms == [5.0, 10.0]
    assert steady.repeats_ms == [5.0, 5.0]
    assert live_outcomes(raw)["controller"].violation.tolist() == [0.5, 0.5]
    found = live_outcomes(steady)
    assert found["controller"].violation.tolist() == [0.0, 0.0]
    assert found["lookup (live)"].accuracy == 1.0


def test_clock_floor_of_a_steady_and_of_a_drifting_clock():
    assert clock_floor([10.0] * 20)["exceeds_own_p95"] == 0.0
    assert clock_floor(([10.0] * 4 + [11.0] * 4) * 5)["exceeds_own_p95"] == 1.0
    assert clock_floor([10.0, 11.0] * 20)["exceeds_own_p95"] == 0.0, "two actors, each steady"


def test_best_by_task_takes_the_fastest_where_nothing_fits(table):
    columns_TK = best_by_task(table, np.array([0.1, 1e6]), max_violation=0.05)
    assert columns_TK.shape == (len(set(table.tasks)), 2)
    for task, (nothing_fits, _) in zip(sorted(set(table.tasks)), columns_TK, strict=True):
        rows = np.array(table.tasks) == task
        assert nothing_fits == table.latencies_ms[rows].mean(0).argmin()


def test_what_earns_most_is_the_oracles_choice_between_two_budgets(table):
    budgets = table_rig.budgets_of(table)
    ms = np.array([budgets.range.low_ms, budgets.feasible_from_ms, budgets.range.high_ms])
    columns_SK = gains(table, np.tile(ms, (60, 1)), max_violation=0.05).argmax(-1)
    best = oracle_per_task(table, ms[[0, 2]], max_violation=0.05)
    over_SK = np.take_along_axis(table.latencies_ms, columns_SK, 1) > ms
    inside = (np.take_along_axis(table.scores, columns_SK, 1) * ~over_SK).mean(0)
    assert inside[[0, 2]] == pytest.approx(best.in_budget_accuracy)

"""What the evaluation computes from latencies that it has measured."""

import numpy as np
import pytest

from launch.analysis.baselines import Rival, oracle_per_task, outcome
from launch.analysis.greedy_sweep import GreedySweep
from launch.analysis.interleaved import Live, table_factor
from launch.evaluate import BY_KIND, BY_SAMPLE, clock_facts, collect_outcomes, verdict
from launch.run.warm_start import gains
from tests import table_rig

BUDGETS = np.array([11.8, 20.0, 1e6])


@pytest.fixture(scope="module")
def table():
    return table_rig.synthetic_table(60)


def live(table, rivals, factor=1.25):
    """Rivals run live, so many times as slow as their table says, and a controller at 15 ms."""
    shape = (len(table.sample_ids), len(BUDGETS))
    columns = {
        name: np.array([rival.columns_for(task) for task in table.tasks])
        for name, rival in rivals.items()
    }
    runs = {
        name: (
            np.take_along_axis(table.scores, column_SK, 1),
            np.take_along_axis(factor * table.latencies_ms, column_SK, 1),
        )
        for name, column_SK in columns.items()
    }
    result = GreedySweep(
        budgets_ms=BUDGETS,
        scores=np.ones(shape),
        latencies_ms=np.full(shape, 15.0),
        device_budgets_ms=np.tile(1.1 * BUDGETS, (shape[0], 1)),
        device_ms=np.full(shape, 16.5),
        wall_ms=np.full(shape, 33.0),
        cheapest_ms=np.repeat(table.cheapest_ms[:, None], 3, axis=1) * [0.9, 1.0, 1.1],
        actions=np.zeros((*shape, 4), int),
        indices=tuple(range(len(table.tasks))),
        tasks=table.tasks,
        sample_ids=table.sample_ids,
    )
    return Live(result=result, rivals=runs)


def test_the_clock_is_described_by_what_was_measured(table):
    rivals = {"lookup": Rival(columns=(3, 3, 70)), "static": Rival(columns=(0, 0, 0))}
    measured = live(table, rivals)
    measured.rivals["lookup"][1][:5] *= 10  # a slow moment
    assert table_factor(measured, rivals, table) == pytest.approx(1.25)
    facts = clock_facts(measured, rivals, table)
    assert facts["slowest"] == facts["fastest"] == pytest.approx(1.1)
    assert facts["wall over clock"] == pytest.approx(2.0)
    assert facts["scatter of repeats"] == pytest.approx(np.log([0.9, 1.0, 1.1]).std(ddof=1))


def test_outcomes_of_what_ran_live_and_of_bounds(table):
    rivals = {"lookup": Rival(columns=(3, 3, 70))}
    found = collect_outcomes(live(table, rivals), table)
    assert list(found)[:3] == ["controller", "lookup", "random"]
    assert found["controller"].in_budget_accuracy.tolist() == [0, 1, 1]
    assert 0 < (table.cheapest_ms <= BUDGETS[0]).mean() < 1, "some episodes are feasible there"
    assert found["controller"].violation.tolist() == [1, 0, 0]
    assert found[BY_KIND].accuracy <= found[BY_SAMPLE].accuracy


def test_the_verdict_names_the_strongest_rival():
    latencies, feasible = np.ones((60, 1)), np.ones((60, 1), bool)
    half = (np.random.default_rng(0).random((60, 1)) < 0.5).astype(float)

    def of(scores, latencies=latencies):
        return outcome(scores, latencies, np.array([2.0]), feasible)

    right, wrong = of(np.ones((60, 1))), of(np.zeros((60, 1)))
    found = {"controller": of(half), "lookup": of(half), "static": wrong, "random": wrong}
    found |= {BY_KIND: right, BY_SAMPLE: right}
    text = verdict(found, ["lookup", "static"])
    assert "DOES NOT BEAT its strongest rival, lookup" in text
    assert "within chance" in text
    text = verdict({**found, "controller": right}, ["lookup", "static"])
    assert "it beats its strongest rival, lookup" in text
    assert "within chance" not in text
    assert f"{BY_KIND} +0." in text
    late = of(np.ones((60, 1)), latencies * 3)
    text = verdict({**found, "controller": late}, ["lookup", "static"])
    assert "0.000 within budget, 100.0% violations; it DOES NOT BEAT" in text
    assert "its strongest rival, static" in verdict(
        {**found, "static": right}, ["lookup", "static"]
    )


def test_what_earns_most_is_the_oracles_choice_between_two_budgets(table):
    budgets = table_rig.budgets_of(table)
    ms = np.array([budgets.range.low_ms, budgets.uniform_from_ms, budgets.range.high_ms])
    columns_SK = gains(table, np.tile(ms, (60, 1)), max_violation=0.05).argmax(-1)
    best = oracle_per_task(table, ms[[0, 2]], max_violation=0.05)
    over_SK = np.take_along_axis(table.latencies_ms, columns_SK, 1) > ms
    inside = (np.take_along_axis(table.scores, columns_SK, 1) * ~over_SK).mean(0)
    assert inside[[0, 2]] == pytest.approx(best.in_budget_accuracy)

"""Lookup tables, static configurations and oracles, on a table worked out by hand."""

import numpy as np
import pytest

from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Knobs
from launch.analysis import baselines
from rollout.profiling.profile_table import ProfileTable

MIDDLE = Knobs(tier=1, position=1, top_k=6, num_blocks=14)
BUDGETS = np.array([10.0, 25.0, 60.0])


@pytest.fixture
def table():
    return ProfileTable(
        configurations=(CHEAPEST_KNOBS, MIDDLE, FULL_KNOBS),
        sample_ids=("a", "b"),
        tasks=("easy", "hard"),
        prompts=("easy: ?", "hard: ?"),
        scores=np.array([[1, 1, 1], [0, 0, 1]], np.float32),
        latencies_ms=np.array([[9, 20, 50], [12, 24, 58]], np.float32),
    )


def test_static_configurations(table):
    every = baselines.static_policies(table, BUDGETS)
    cheapest = every[str(CHEAPEST_KNOBS)]
    assert cheapest.in_budget_accuracy.tolist() == [0.5, 0.5, 0.5]
    assert cheapest.violation.tolist() == [0.5, 0, 0]
    full = every[str(FULL_KNOBS)]
    assert full.in_budget_accuracy.tolist() == [0, 0, 1]
    assert full.violation.tolist() == [1, 1, 0]


def test_lookup_takes_the_most_accurate_that_fits(table):
    allowed = np.ones(3, dtype=bool)
    assert baselines.lookup(table, BUDGETS, quantile=1.0, allowed=allowed) == [0, 0, 2]
    only_middle = np.array([False, True, False])
    assert baselines.lookup(table, BUDGETS, quantile=0.5, allowed=only_middle) == [1, 1, 1]


def test_oracles(table):
    by_budget = baselines.oracle_per_budget(table, BUDGETS)
    assert by_budget.in_budget_accuracy.tolist() == [0.5, 0.5, 1.0]
    by_sample = baselines.oracle_per_sample(table, BUDGETS)
    assert by_sample.in_budget_accuracy.tolist() == [0.5, 0.5, 1.0]
    assert by_sample.violation.tolist() == [0.5, 0, 0]


def test_differences_are_taken_sample_by_sample(table):
    every = baselines.static_policies(table, BUDGETS)
    full, cheapest = every[str(FULL_KNOBS)], every[str(CHEAPEST_KNOBS)]
    assert full.by_sample == pytest.approx([1 / 3, 1 / 3])
    assert cheapest.by_sample == pytest.approx([1.0, 0.0])
    assert full.accuracy == pytest.approx(1 / 3)
    ahead = full.ahead_of(cheapest)
    assert ahead.mean == pytest.approx(-1 / 6)
    assert ahead.half_width == pytest.approx(1.96 * 0.5**0.5 / 2**0.5)  # of -2/3 and 1/3


def test_random_is_the_mean_over_configurations(table):
    outcome = baselines.random_policy(table, BUDGETS)
    assert outcome.in_budget_accuracy == pytest.approx([1 / 6, 2 / 6, 4 / 6])


def test_round_trip_and_broken_files(table, tmp_path):
    path = tmp_path / "table.npz"
    table.save(path)
    again = ProfileTable.load(path)
    assert again.configurations == table.configurations
    assert again.prompts == table.prompts
    assert np.array_equal(again.scores, table.scores)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"is not a profile table .* measure it again"):
        ProfileTable.load(path)
    path.write_text("plain text")
    with pytest.raises(ValueError, match=r"not an \.npz file of arrays.: measure it again"):
        ProfileTable.load(path)
    with pytest.raises(ValueError, match="not in the profile"):
        table.column(Knobs(tier=2, position=5, top_k=4, num_blocks=16))


def test_rows_must_cover_the_same_configurations():
    row = {"sample_id": "a", "task": "t", "prompt": "p"}
    rows = [
        {**row, "scores": {str(MIDDLE): 1}, "latencies_ms": {str(MIDDLE): 1}},
        {**row, "scores": {str(FULL_KNOBS): 1}, "latencies_ms": {str(FULL_KNOBS): 1}},
    ]
    with pytest.raises(ValueError, match="covers other configurations"):
        ProfileTable.from_rows(rows)
    with pytest.raises(ValueError, match="no sample"):
        ProfileTable.from_rows([])


def test_under_a_scatter_a_latency_counts_by_its_chance(table):
    budgets = np.array([24.0])
    hard = baselines.priced_gains(table, budgets, max_violation=1.0)
    soft = baselines.priced_gains(table, budgets, max_violation=1.0, scatter=0.1)
    easy, middle = 0, 1
    assert hard[0, easy, middle] == pytest.approx(1.0, abs=1e-5)
    chance = 0.9659  # that 20 ms times exp(N(0, 0.1)) stays within 24 ms: ln(1.2) / 0.1 = 1.82
    assert soft[0, easy, middle] == pytest.approx(chance, abs=1e-3)
    steady = baselines.priced_gains(table, budgets, max_violation=1.0, scatter=1e-6)
    assert steady[0, easy] == pytest.approx(hard[0, easy])

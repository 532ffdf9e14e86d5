from dataclasses import replace

import numpy as np
import pytest
import torch

from launch.recipes import embedded, embedded_scratch
from launch.warm_start import (
    detours,
    examples_from_profile,
    gains,
    warm_start_from_profile,
)
from learner.warm_start import WarmStartConfig
from rollout.build import WorkerConfig
from rollout.fleet import LocalFleet
from tests import launch_rig, table_rig
from tests.rollout import rig


@pytest.fixture(scope="module")
def table():
    return table_rig.synthetic_table(60)


def test_targets_keep_their_budget_over_all_kinds(table):
    budgets = table_rig.budgets_of(table)
    budgets_SK = np.tile([budgets.range.low_ms, budgets.range.high_ms], (60, 1))
    columns_SK = gains(table, budgets_SK, max_violation=0.05).argmax(-1)
    tasks = np.array(table.tasks)
    for task in set(table.tasks):
        rows = np.flatnonzero(tasks == task)
        assert len(np.unique(columns_SK[rows], axis=0)) == 1, "one target a kind and budget"
    low_ms, high_ms = (table.latencies_ms[np.arange(60), columns_SK[:, k]] for k in (0, 1))
    assert (high_ms > budgets.range.high_ms).mean() <= 0.05
    assert low_ms.mean() < 0.8 * high_ms.mean()


def test_detours_are_the_best_behind_what_other_budgets_would_get(table):
    budgets = table_rig.budgets_of(table)
    low, high = budgets.feasible_from_ms, budgets.range.high_ms
    budgets_SK = np.tile(np.linspace(low, high, 3), (60, 1))
    gains_SKC = gains(table, budgets_SK)
    best_SK, detour_SK = gains_SKC.argmax(-1), detours(table, gains_SKC)
    knobs = table.configurations
    for sample in range(60):
        for place in range(3):
            chosen = knobs[detour_SK[sample, place]]
            assert chosen.tier == knobs[best_SK[sample, place - 1]].tier
            assert chosen.position == knobs[best_SK[sample, place - 2]].position
            rivals = [
                gains_SKC[sample, place, column]
                for column, other in enumerate(knobs)
                if (other.tier, other.position) == (chosen.tier, chosen.position)
            ]
            assert gains_SKC[sample, place, detour_SK[sample, place]] == max(rivals)
    assert (detour_SK != best_SK).any()


def test_the_shipped_profile_is_refused_for_another_model_or_other_tasks():
    for worker in (WorkerConfig(model="/other"), WorkerConfig(tasks=("digits",))):
        with pytest.raises(ValueError, match="shipped profile"):
            replace(embedded(), worker=worker)
        assert replace(embedded_scratch(), worker=worker).warm_start_profile is None


def test_examples_hold_what_the_controller_would_see(table, tmp_path):
    fleet = table_rig.fleet_of(table)
    run = table_rig.table_run(tmp_path, table_rig.settings(embedded_scratch()), fleet)
    controller = run.learner.controller
    examples = examples_from_profile(controller, table, run.setup.budgets, fleet, num_budgets=3)
    assert len(examples.budgets_ms_B) == 360
    assert examples.is_stage1_target_B.reshape(60, 6)[7].tolist() == [True] * 3 + [False] * 3
    row = 100
    sample = row // 6
    feature = fleet.splits["train"].language_feature_SD[sample]
    assert np.array_equal(examples.language_feature_BD[row], feature)
    with torch.no_grad():
        token = controller.budget_tokens(torch.from_numpy(examples.budgets_ms_B[row : row + 1]))
        tier, position, *_ = torch.from_numpy(examples.actions_B4[row : row + 1]).unbind(1)
        latency = fleet.blocks(token, torch.from_numpy(feature)[None], tier, position)
    assert torch.allclose(torch.from_numpy(examples.latency_token_BD[row]), latency[0], atol=1e-5)


def test_it_runs_through_the_model(table):
    """The same glue with a real worker: the profile's ids name the worker's samples."""
    small = table.rows(np.arange(3))
    small = replace(small, sample_ids=tuple(f"noise/train/{n}" for n in range(3)))
    controller = rig.controller()
    fleet = LocalFleet(launch_rig.worker())
    record = warm_start_from_profile(
        controller, small, rig.BUDGETS, fleet, WarmStartConfig(steps=30, batch_size=8)
    )
    assert record.cross_entropy_after < record.cross_entropy_before

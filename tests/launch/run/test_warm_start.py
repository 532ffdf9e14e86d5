from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.spec import Tier
from launch.run.recipes import PriceConfig, embedded, embedded_warm
from launch.run.warm_start import (
    NUM_PRICES,
    by_choice,
    draw_prices,
    examples_from_profile,
    gains,
    warm_start_from_profile,
)
from learner.config import LearnerConfig, ReplayConfig
from learner.imitation import WarmStartConfig
from learner.learner import Learner
from rollout.group_sharing import MolmoEGroupSession
from rollout.requests import PrefixRequest
from rollout.simulation.table_samples import budgets_of
from rollout.worker_config import WorkerConfig
from studies.table_run import quiet_settings, table_run
from tests import launch_rig, table_rig
from tests.in_process import LocalFleet
from tests.rollout import rig


@pytest.fixture(scope="module")
def table():
    return table_rig.synthetic_table(60)


def test_targets_keep_their_budget_over_all_kinds(table):
    budgets = budgets_of(table)
    budgets_SK = np.tile([budgets.range.low_ms, budgets.range.high_ms], (60, 1))
    free_SK = np.zeros_like(budgets_SK)
    columns_SK = gains(table, budgets_SK, free_SK, max_violation=0.05).argmax(-1)
    tasks = np.array(table.tasks)
    for task in set(table.tasks):
        rows = np.flatnonzero(tasks == task)
        assert len(np.unique(columns_SK[rows], axis=0)) == 1, "one target a kind and budget"
    low_ms, high_ms = (table.latencies_ms[np.arange(60), columns_SK[:, k]] for k in (0, 1))
    assert (high_ms > budgets.range.high_ms).mean() <= 0.05
    assert low_ms.mean() < 0.8 * high_ms.mean()


def test_gains_at_a_price_are_those_without_less_the_cost_of_time(table):
    """Per task, as the gains are; where a budget holds for all, the expected time is the mean."""
    budgets_SK = np.full((60, 2), 1e3)
    costs_SK = np.tile([0.0, 0.01], (60, 1))
    budgets_SK[0] = 999.0  # a grid needs two ends
    found = gains(table, budgets_SK, costs_SK)
    tasks = np.array(table.tasks)
    for task in set(table.tasks):
        mean_C = table.latencies_ms[tasks == task].mean(0)
        row = int(np.flatnonzero(tasks == task)[-1])
        assert np.allclose(found[row, 0] - found[row, 1], 0.01 * mean_C, rtol=1e-4, atol=1e-6)


def test_examples_have_a_few_prices_of_the_runs_range():
    setup = launch_rig.setup(PriceConfig(low=0.1, high=1.6, share_free=0.4, default=0.1))
    prices = draw_prices(setup, (100, 20), np.random.default_rng(0))
    assert (prices == 0).mean() == pytest.approx(0.4, abs=0.04)
    values, counts = np.unique(prices[prices > 0], return_counts=True)
    assert values == pytest.approx(np.geomspace(0.1, 1.6, NUM_PRICES))
    assert counts.min() > 0.5 * counts.max()
    free = draw_prices(launch_rig.setup(), (3, 2), np.random.default_rng(0))
    assert np.array_equal(free, np.zeros((3, 2)))


def test_gains_are_arranged_by_choice(table):
    some = replace(
        table,
        configurations=table.configurations[3:5],
        scores=table.scores[:, 3:5],
        latencies_ms=table.latencies_ms[:, 3:5],
    )
    arranged = by_choice(some, np.arange(12.0).reshape(2, 3, 2))
    assert arranged.shape == (6, 3, 5, 5, 5)
    assert arranged[4, *some.configurations[1].indices()] == 9.0
    assert np.isfinite(arranged).sum() == 12


def test_the_shipped_profile_is_refused_for_another_model_or_other_tasks():
    for worker in (WorkerConfig(model="/other"), WorkerConfig(tasks=("digits",))):
        with pytest.raises(ValueError, match="shipped profile"):
            replace(embedded_warm(), worker=worker)
        assert replace(embedded(), worker=worker).warm_start_profile is None


def test_examples_hold_what_the_controller_would_see(table, tmp_path):
    fleet = table_rig.fleet_of(table)
    run = table_run(tmp_path, quiet_settings(embedded()), fleet)
    controller = run.learner.controller
    full_ms = run.calibration.full_ms
    examples = examples_from_profile(
        controller, table, run.setup, fleet, full_ms=full_ms, num_terms=3
    )
    assert len(examples.budgets_ms_B) == 180
    row = int(np.flatnonzero(examples.prices_B[90:] > 0)[0]) + 90
    sample = row // 3
    feature = fleet.splits["train"].language_feature_SD[sample]
    assert np.array_equal(examples.language_feature_BD[row], feature)
    with torch.no_grad():
        asked = (examples.budgets_ms_B, examples.prices_B)
        token = controller.budget_tokens(*(torch.from_numpy(x[row : row + 1]) for x in asked))
        places = (torch.tensor([2]), torch.tensor([3]))
        latency = fleet.blocks(token, torch.from_numpy(feature)[None], *places)
    found = torch.from_numpy(examples.latency_token_BAPD[row, 2, 3])
    assert torch.allclose(found, latency[0], atol=1e-5)
    budgets_SK = examples.budgets_ms_B.reshape(60, 3)
    costs_SK = examples.prices_B.reshape(60, 3) / full_ms
    best = table.configurations[int(gains(table, budgets_SK, costs_SK)[sample, row % 3].argmax())]
    assert examples.gains_BAPKN[row, *best.indices()] == examples.gains_BAPKN[row].max()


def test_a_worker_gives_the_tokens_of_a_rollout():
    """Whatever tier and position a rollout takes, the warm start saw its token, rounding apart."""
    worker = launch_rig.worker()
    token = np.random.default_rng(0).normal(size=(2, rig.SIXTEEN.d_model)).astype(np.float32)
    prefixes = worker.prefixes(PrefixRequest(split="train", index=1, budget_tokens_KD=token))
    sample = worker.tasks.sample("train", 1)
    for tier, position in ((Tier.LOW, 1), (Tier.HIGH, 4)):
        group = MolmoEGroupSession(worker.executor, sample)
        (alone,) = group.begin([(tier, position)], token[1])
        seen = prefixes.latency_tokens[1, tier, position - 1]
        np.testing.assert_allclose(seen, alone, rtol=0, atol=1e-6 * np.linalg.norm(alone))


def test_it_runs_through_the_model(table):
    """The same glue with a real worker: the profile's ids name the worker's samples."""
    small = table.rows(np.arange(3))
    small = replace(small, sample_ids=tuple(f"noise/train/{n}" for n in range(3)))
    controller = rig.controller()
    fleet = LocalFleet(launch_rig.worker())
    steps = WarmStartConfig(steps=30, batch_size=8)
    replay = ReplayConfig(profile_updates=30)
    learner = Learner(controller, LearnerConfig(replay=replay))
    record = warm_start_from_profile(learner, small, launch_rig.setup(), fleet, steps, full_ms=80.0)
    assert record.regret_after < record.regret_before
    assert len(learner.replay.profiled) == 3
    start, now = (c.state_dict() for c in (learner.initial_controller, controller))
    assert all(torch.equal(start[name], now[name]) for name in now)

"""Sharing is invisible, and the group's gradient is the sum of its members'."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.spec import Knobs, Tier, all_knobs
from policy.controller import Controller
from rollout.group_sharing import MolmoEGroupSession
from tests.policy.evaluating import evaluate
from tests.rollout import rig

EVERY = list(all_knobs())


@pytest.fixture(scope="module")
def runner():
    return rig.runner()


def generators(seed, size):
    return [torch.Generator().manual_seed(1000 * seed + member) for member in range(size)]


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(s, marks=pytest.mark.slow) for s in range(8, 60))]
)
def test_group_equals_independent_runs(runner, seed):
    rng = np.random.default_rng(seed)
    knobs = [EVERY[i] for i in rng.integers(0, len(EVERY), 8)]
    sample = rig.NoiseTask().sample("train", seed)
    token = rng.normal(size=32).astype(np.float32)

    def play(members: list[Knobs]):
        group = MolmoEGroupSession(runner.executor, sample)
        tokens = group.begin([(k.tier, k.position) for k in members], token)
        return tokens, group.finish([(k.top_k, k.num_blocks) for k in members])

    tokens, executions = play(knobs)
    for member, (row, execution) in enumerate(zip(tokens, executions, strict=True)):
        alone_tokens, (alone,) = play([knobs[member]])
        assert np.array_equal(row, alone_tokens[0])
        assert execution.answer == alone.answer
        assert execution.knobs == alone.knobs == knobs[member]
        assert set(execution.stages_ms) == set(alone.stages_ms)


def test_work_that_members_share_runs_once(runner, monkeypatch):
    calls = []
    for name in ("begin", "advance"):
        original = getattr(type(runner.executor), name)

        def counted(self, *args, name=name, original=original):
            calls.append(name)
            return original(self, *args)

        monkeypatch.setattr(type(runner.executor), name, counted)
    one = Knobs(tier=0, position=1, top_k=4, num_blocks=12)
    two = Knobs(tier=0, position=3, top_k=4, num_blocks=14)
    group = MolmoEGroupSession(runner.executor, rig.NoiseTask().sample("train", 0))
    members = [one, two, one, two, one]
    group.begin([(k.tier, k.position) for k in members], np.zeros(32, dtype=np.float32))
    group.finish([(k.top_k, k.num_blocks) for k in members])
    assert calls == ["begin", "advance", "advance"]


def test_runner_is_repeatable_and_members_are_independent(runner):
    sample = rig.NoiseTask().sample("train", 3)
    first = runner.run(sample, 40.0, generators(1, 8))
    again = runner.run(sample, 40.0, generators(1, 8))
    assert np.array_equal(first.actions, again.actions)
    assert np.array_equal(first.log_probs, again.log_probs)
    assert np.array_equal(first.latency_tokens, again.latency_tokens)
    fewer = runner.run(sample, 40.0, generators(1, 8)[2:5])
    assert np.array_equal(fewer.actions, first.actions[2:5])
    assert np.array_equal(fewer.latency_tokens, first.latency_tokens[2:5])


def test_the_prompt_is_looked_up_once(runner, monkeypatch):
    calls = []
    original = runner.executor.features
    monkeypatch.setattr(
        runner.executor, "features", lambda *seen: calls.append(1) or original(*seen)
    )
    runner.run(rig.NoiseTask().sample("train", 3), 40.0, generators(1, 3))
    assert calls == [1]


def test_a_trimmed_group_is_smaller_and_keeps_its_gradient(runner):
    sample, rows = rig.NoiseTask().sample("train", 4), np.ones((2, 32), np.float32)
    group = MolmoEGroupSession(runner.executor, sample)
    group.begin([(Tier.LOW, 2), (Tier.HIGH, 4)], np.ones(32, np.float32))
    before, num_bytes = group.budget_gradient(rows), group.num_bytes
    group.trim()
    caches = sum(prefix.cache.num_bytes for prefix in group.prefixes.values())
    assert caches < group.num_bytes < num_bytes
    assert np.array_equal(group.budget_gradient(rows), before)


def test_outcomes_carry_the_controllers_time(runner):
    result = runner.run(rig.NoiseTask().sample("train", 3), 40.0, generators(1, 3))
    for outcome, action in zip(result.outcomes, result.actions, strict=True):
        assert outcome.execution.knobs.indices() == tuple(action)
        assert outcome.stages_ms["language_feature"] > 0
        assert outcome.stages_ms["stage1"] > 0
        assert outcome.stages_ms["stage2"] > 0
        assert outcome.latency_ms == pytest.approx(sum(outcome.stages_ms.values()))


def test_greedy_single_episode(runner):
    result = runner.run(rig.NoiseTask().sample("train", 3), 40.0)
    assert result.actions.shape == (1, 4)


def test_log_probs_are_those_of_the_controller(runner):
    result = runner.run(rig.NoiseTask().sample("train", 5), 40.0, generators(2, 6))
    controller = runner.controller
    token = controller.budget_tokens(torch.tensor([40.0]))
    evaluation = evaluate(
        controller,
        torch.from_numpy(result.features.language)[None].expand(6, -1),
        token.expand(6, -1),
        torch.from_numpy(result.latency_tokens),
        torch.from_numpy(result.actions),
        torch.from_numpy(result.features.image)[None].expand(6, -1),
    )
    assert np.allclose(evaluation.log_probs_B4.detach().numpy(), result.log_probs, atol=1e-5)


def test_group_gradient_is_the_sum_of_its_members(runner):
    sample = rig.NoiseTask().sample("train", 4)
    rng = np.random.default_rng(0)
    token = rng.normal(size=32).astype(np.float32)
    members = [EVERY[i] for i in (0, 40, 40, 120, 200, 224)]
    gradients = rng.normal(size=(6, 32)).astype(np.float32)
    gradients[1] = 0

    def gradient(chosen, rows):
        group = MolmoEGroupSession(runner.executor, sample)
        group.begin([(k.tier, k.position) for k in chosen], token)
        return group.budget_gradient(rows)

    together = gradient(members, gradients)
    alone = sum(
        gradient([k], row[None]) for k, row in zip(members, gradients, strict=True) if row.any()
    )
    assert np.allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert together.dtype == np.float32


def test_a_controller_that_does_not_see_the_image_pays_for_no_feature(runner):
    blind = Controller(replace(runner.controller.config, image_dim=0))
    group = rig.Runner(runner.executor, blind)
    sample = rig.NoiseTask().sample("train", 3)
    result, seeing = group.run(sample, 40.0), runner.run(sample, 40.0)
    assert result.features.image.shape == (0,)
    assert seeing.features.image.any()
    (outcome,), (other,) = result.outcomes, seeing.outcomes
    assert "vision_global" in outcome.stages_ms
    assert "image_feature" not in outcome.stages_ms
    assert other.stages_ms["image_feature"] > 0

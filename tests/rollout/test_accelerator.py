"""The rollout on a pretended accelerator gives what it gives on the CPU, and reads only tokens."""

import numpy as np
import pytest
import torch

from envs.spec import Tier, all_knobs
from learner.imitation import WarmStartConfig, warm_start
from rollout.build import make_env
from rollout.executor import MolmoEExecutor
from rollout.executor_config import ExecutorConfig
from rollout.molmoe import load_model
from rollout.molmoe.generation import generate
from tests.learner.synthetic import make_controller
from tests.learner.test_imitation import make_examples
from tests.pretended_accelerator import DEVICE
from tests.rollout import rig

TOKEN = np.random.default_rng(0).normal(size=32).astype(np.float32)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""For numbers: the accelerator takes other kernels. Choices and answers are exactly the same."""


@pytest.fixture
def runners(accelerator, model_folder):
    """The same model and controller on the CPU and on the accelerator."""
    here = rig.runner()
    model = load_model(model_folder, device=DEVICE)
    there = MolmoEExecutor(
        model, here.executor.preprocessor, here.executor.importance, here.executor.config
    )
    controller = rig.controller().to(DEVICE)
    accelerator.reads.clear()
    return here, rig.Runner(there, controller)


def answers(finished):
    return [outcome.execution.answer for outcome in finished.outcomes]


def members(count):
    return [torch.Generator().manual_seed(member) for member in range(count)]


def test_the_accelerator_shows_mistakes_and_reads(accelerator):
    x = torch.arange(6.0).to(DEVICE)
    assert x.device == DEVICE
    assert torch.equal((x + 1).cpu(), torch.arange(6.0) + 1)
    assert accelerator.reads == ["aten._to_copy.default"]
    with pytest.raises(TypeError, match="convert pretend"):
        x.numpy()
    with pytest.raises(RuntimeError, match="CPU and of pretend"):
        x + torch.ones(6)
    accelerator.reads.clear()
    x[1:3] += 4.0
    assert x[torch.tensor([1, 5], device=DEVICE)].sum() + torch.tensor(1.0) == 11.0
    assert accelerator.reads == [True], "indexing by number needs no read, comparing does"
    accelerator.reads.clear()
    assert len(x[x > 4]) == 3
    assert x.nonzero().shape == (5, 1)
    assert x.max().item() == 6.0
    assert accelerator.reads == ["aten.index.Tensor", "aten.nonzero.default", 6.0]


@pytest.mark.parametrize("knobs", list(all_knobs())[::45], ids=str)
def test_executor_answers_as_on_the_cpu_and_reads_tokens_alone(accelerator, runners, knobs):
    sample = rig.NoiseTask().sample("train", 1)
    here, there = (runner.executor for runner in runners)
    expected = here.begin(sample, knobs.tier, TOKEN)
    here.deepen(expected, knobs.position)
    top_k = [8] * knobs.position + [knobs.top_k] * (16 - knobs.position)
    skipped = here.importance.skipped(knobs.position, knobs.num_blocks)
    inputs = here.preprocessor(sample.image, sample.prompt, knobs.tier.max_crops)
    plain = generate(here.model, inputs, max_new_tokens=4, top_k=top_k, skipped=skipped)

    prefix = there.begin(sample, knobs.tier, TOKEN)
    there.deepen(prefix, knobs.position)
    assert accelerator.reads == []
    execution = there.advance(prefix, knobs)
    end = [here.model.config.eos_token_id] * plain.finished
    assert accelerator.reads == [*plain.token_ids, *end]
    reference = here.advance(expected, knobs)
    assert execution.answer == reference.answer
    assert execution.num_output_tokens == reference.num_output_tokens
    assert set(execution.stages_ms) == set(reference.stages_ms)
    token_D = prefix.latency_tokens[knobs.position].cpu()
    assert np.allclose(token_D, expected.latency_tokens[knobs.position], **CLOSE)


@pytest.mark.parametrize("index", range(2))
def test_sampled_group_and_its_gradient(runners, index):
    sample = rig.NoiseTask().sample("train", index)
    expected, result = (runner.run(sample, 40.0, members(4)) for runner in runners)
    assert np.array_equal(result.actions, expected.actions)
    assert answers(result) == answers(expected)
    assert np.allclose(result.log_probs, expected.log_probs, **CLOSE)
    assert np.allclose(result.latency_tokens, expected.latency_tokens, **CLOSE)
    rows = np.random.default_rng(index).normal(size=(4, 32)).astype(np.float32)
    ours = result.group.session.budget_gradient(rows)
    assert np.allclose(ours, expected.group.session.budget_gradient(rows), **CLOSE)


def test_greedy_group(runners):
    for index in range(2):
        sample = rig.NoiseTask().sample("train", index)
        expected, result = (runner.run(sample, 40.0) for runner in runners)
        assert np.array_equal(result.actions, expected.actions)
        assert answers(result) == answers(expected)


def test_text_only_samples(runners):
    sample = rig.Sample(id="text", task="t", image=None, prompt="what is it", answers=())
    expected, result = (runner.run(sample, 40.0) for runner in runners)
    assert answers(result) == answers(expected)


def test_latency_tokens_for_a_warm_start(runners):
    sample = rig.NoiseTask().sample("train", 1)
    tokens_KD = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    found = []
    for runner in runners:
        prefix = runner.executor.begin(sample, Tier.LOW, tokens_KD[0])
        runner.executor.deepen(prefix, 5)
        found.append(runner.executor.latency_tokens(prefix, tokens_KD))
    assert np.allclose(*found, **CLOSE)


def test_warm_start_learns_the_same(accelerator):
    here, there = make_controller(), make_controller().to(DEVICE)
    examples = make_examples(here)
    config = WarmStartConfig(steps=3)
    expected, result = warm_start(here, examples, config), warm_start(there, examples, config)
    assert result.regret_after == pytest.approx(expected.regret_after, rel=1e-4)
    weights = there.to_numpy()
    for name, weight in here.to_numpy().items():
        assert np.allclose(weights[name], weight, **CLOSE), name


def test_weights_reach_the_device_and_come_back(accelerator):
    weights = rig.controller(seed=7).to_numpy()
    controller = rig.controller().to(DEVICE)
    controller.load_numpy(weights)
    assert next(controller.parameters()).device == DEVICE
    assert all(np.array_equal(controller.to_numpy()[name], w) for name, w in weights.items())


def test_the_gymnasium_environment(accelerator, model_folder, monkeypatch):
    def play():
        options = {"budgets": rig.BUDGETS, "executor": ExecutorConfig(max_new_tokens=4)}
        env = make_env(str(model_folder), ("counting",), **options)
        env.reset(seed=0)
        token, *_ = env.step(np.array([1, 2]))
        return token, env.step(np.array([3, 4]))[-1]["answer"]

    expected_token, expected_answer = play()
    monkeypatch.setattr("rollout.build.torch_device", lambda name: DEVICE)
    token, answer = play()
    assert accelerator.reads, "it ran on the accelerator"
    assert np.allclose(token, expected_token, **CLOSE)
    assert answer == expected_answer

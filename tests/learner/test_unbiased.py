"""The whole gradient of a step against enumeration of all configurations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.reward import BudgetReward
from learner.config import EntropySchedule, LearnerConfig, OutcomeModelConfig, ReplayConfig
from learner.learner import Learner
from learner.replay_buffer import Episodes
from tests.learner.synthetic import (
    ACTIONS,
    D_MODEL,
    FrozenBlocks,
    enumerate_log_probs,
    flat_gradient,
    make_controller,
    run_groups,
)

BLOCKS = FrozenBlocks()
LANGUAGE_ND = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(5))
BUDGETS_N = torch.tensor([140.0, 220.0])
WORTH = BudgetReward(
    violation_cost=lambda budgets_ms: np.full(np.shape(budgets_ms), 0.8), full_ms=180.0
)
REPLAY = ReplayConfig(
    warm_up=1, model=OutcomeModelConfig(input_dropout=0, dropout=0, weight_decay=0)
)


def rewards_of(actions_C4):
    """An arbitrary reward of each configuration, between 0 and 1."""
    weights = torch.tensor([0.37, 0.61, 0.23, 0.83])
    return torch.sin(actions_C4.float() @ weights).square()


def wrong_gains(episodes, _worth):
    """A model that prefers what is bad: small choices of every head."""
    scale = torch.arange(5) / 10
    worth = 1.0 - sum(
        scale[:size].view([-1 if axis == head else 1 for axis in range(4)])
        for head, size in enumerate((3, 5, 5, 5))
    )
    allowed = torch.zeros(3, 5, 5, 5, dtype=torch.bool)
    allowed[tuple(ACTIONS.T)] = True
    return worth.masked_fill(~allowed, -torch.inf).expand(len(episodes), -1, -1, -1, -1)


def gradient_of_a_step(residual_weight, num_steps=30, size=400):
    """Mean gradient of the expected reward by the learner's first update, without entropy."""
    settings = LearnerConfig(
        entropy=EntropySchedule(start=0, end=0, steps=1),
        replay=replace(REPLAY, residual_weight=residual_weight),
    )
    total, rng = 0, torch.Generator().manual_seed(3)
    for _ in range(num_steps):
        learner = Learner(make_controller(head_std=0.3), settings)
        learner.replay.model.gains = wrong_gains
        acted = run_groups(learner.controller, BLOCKS, LANGUAGE_ND, BUDGETS_N, size, rng)
        groups = [
            replace(
                group, latencies_ms=np.ones(size), scores=rewards_of(torch.from_numpy(a)).numpy()
            )
            for group in acted
            for a in (group.actions,)
        ]
        episodes = Episodes.of(groups, learner.replay.tasks)
        learner.replay.buffer.add(episodes)
        learner.replay.buffer.draw = lambda _count, _rng, e=episodes: e
        score = np.array([group.scores for group in groups], np.float64)
        measured = learner.learn_from_groups(groups, score, np.zeros_like(score), WORTH)
        tokens = learner.controller.budget_tokens(BUDGETS_N, torch.zeros(2))
        tokens.backward(torch.from_numpy(np.array(BLOCKS.vjp(learner.controller, measured))))
        learner.replay.backward(WORTH, 0.0)
        total = total - flat_gradient(learner.controller) / num_steps
    return total


def true_gradient():
    """Gradient of the mean expected reward of both states, by enumeration."""
    controller = make_controller(head_std=0.3)
    value = 0
    for language_D, budget_ms in zip(LANGUAGE_ND, BUDGETS_N, strict=True):
        log_probs_C = enumerate_log_probs(controller, BLOCKS, language_D[None], budget_ms[None])
        value = value + log_probs_C.exp() @ rewards_of(ACTIONS) / 2
    value.backward()
    return flat_gradient(controller)


def test_the_whole_gradient_is_unbiased_however_wrong_the_model_is():
    """With the residual in full; without it the gradient is that of the wrong model."""
    truth = true_gradient()
    errors = {
        weight: float((gradient_of_a_step(weight) - truth).norm() / truth.norm())
        for weight in (0.0, 1.0)
    }
    print(f"error of the gradient relative to its norm: {errors}")
    assert errors[0.0] > 1
    assert errors[1.0] == pytest.approx(0, abs=0.12)

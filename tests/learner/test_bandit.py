"""Learning on a table whose latency and accuracy laws are known."""

import numpy as np
import torch

from learner.config import EntropySchedule, LearnerConfig
from learner.learner import Learner
from tests.learner.synthetic import (
    ACTIONS,
    D_MODEL,
    FrozenBlocks,
    enumerate_log_probs,
    make_controller,
    run_groups,
)

BLOCKS = FrozenBlocks()
LAMBDA = 1.0


def latency_ms(actions: np.ndarray) -> np.ndarray:
    """From 90 ms (cheapest) to 260 ms."""
    tier, _, top_k, num_blocks = np.moveaxis(actions, -1, 0)
    return 90 + 45 * tier + 10 * top_k + 10 * num_blocks


def accuracy(actions: np.ndarray) -> np.ndarray:
    """Grows with every knob, most with the tier: from 0.3 to 0.94."""
    tier, _, top_k, num_blocks = np.moveaxis(actions, -1, 0)
    return 0.3 + 0.2 * tier + 0.02 * top_k + 0.04 * num_blocks


def rewards(actions: np.ndarray, budget_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ratio = latency_ms(actions) / budget_ms
    constraint = -(LAMBDA * (ratio > 1) + 0.5 * np.clip(ratio - 1, 0, 1))
    return accuracy(actions), constraint


@torch.no_grad()
def expected_and_best(controller, language, budgets) -> np.ndarray:
    """[2] exact expected reward of the policy and of the best table, mean over budgets."""
    rows = []
    for budget in budgets:
        reward = sum(rewards(ACTIONS.numpy(), budget.numpy()))
        probs = enumerate_log_probs(controller, BLOCKS, language, budget[None]).exp().numpy()
        rows.append((probs @ reward, reward.max()))
    return np.mean(rows, axis=0)


def test_learns_to_keep_the_budget_and_to_use_it(tmp_path):
    learner = Learner(
        make_controller(),
        LearnerConfig(learning_rate=3e-3, entropy=EntropySchedule(start=0.02, end=0, steps=150)),
    )
    rng = torch.Generator().manual_seed(0)
    language, test_budgets = torch.zeros(1, D_MODEL), torch.linspace(100, 300, 9)
    before, best = expected_and_best(learner.controller, language, test_budgets)
    for _ in range(150):
        budgets = 100 + 200 * torch.rand(8, generator=rng)
        groups = run_groups(
            learner.controller, BLOCKS, language.expand(8, -1), budgets, 8, rng, learner.version
        )
        actions = np.stack([group.actions for group in groups])
        measured = learner.learn_from_groups(groups, *rewards(actions, budgets.numpy()[:, None]))
        learner.update(measured, BLOCKS.vjp(learner.controller, measured))
    after, _ = expected_and_best(learner.controller, language, test_budgets)
    assert best - after < 0.25 * (best - before), (before, after, best)

"""The gradient that prepare and apply compute, against finite differences and enumeration."""

import numpy as np
import pytest
import torch

from learner.advantages import ADVANTAGE_FORMS, combine
from learner.config import EntropySchedule, LearnerConfig, LossConfig
from learner.learner import Learner
from tests.learner.synthetic import (
    ACTIONS,
    D_MODEL,
    FrozenBlocks,
    enumerate_log_probs,
    flat_gradient,
    make_controller,
    run_groups,
)

NO_ENTROPY = EntropySchedule(start=0.0, end=0.0)


def make_learner(tmp_path, **fields) -> Learner:
    """A float64 learner whose step is too small to change a weight and whose gradient is whole."""
    config = LearnerConfig(
        learning_rate=1e-30, weight_decay=0.0, grad_clip=1e9, **({"entropy": NO_ENTROPY} | fields)
    )
    controller = make_controller(head_std=0.5, projection_dim=6, hidden_dim=8).double()
    return Learner(controller, config)


def two_way_update(learner, blocks, groups, score, constraint) -> torch.Tensor:
    measured = learner.learn_from_groups(groups, score, constraint)
    learner.update(measured, blocks.vjp(learner.controller, measured))
    return flat_gradient(learner.controller).clone()


def test_budget_mlp_gradient_against_finite_differences(tmp_path):
    """Entropy and KL terms included: all of them reach the latency token."""
    entropy, loss = EntropySchedule(start=0.3, end=0.3), LossConfig(kl_coef=0.2)
    learner = make_learner(tmp_path, entropy=entropy, loss=loss)
    with torch.no_grad():
        for weight in learner.initial_controller.stage2.parameters():
            weight.mul_(0.7)
    blocks, rng = FrozenBlocks(torch.float64), torch.Generator().manual_seed(0)
    language = torch.randn(3, D_MODEL, generator=rng).double()
    budgets = torch.tensor([110.0, 200.0, 290.0])
    groups = run_groups(learner.controller, blocks, language, budgets, 4, rng)
    rewards = np.random.default_rng(0).normal(size=(2, 3, 4))
    two_way_update(learner, blocks, groups, *rewards)
    actions = torch.from_numpy(np.concatenate([group.actions for group in groups]))
    language_BD = torch.from_numpy(np.stack([group.language_feature for group in groups]))
    language_BD = language_BD.double().repeat_interleave(4, 0)
    advantages = torch.from_numpy(combine(ADVANTAGE_FORMS["leave_one_out"], *rewards)).flatten()
    tokens0 = learner.controller.budget_tokens(budgets).repeat_interleave(4, 0).detach()
    latency0 = blocks(tokens0, language_BD, actions)
    with torch.no_grad():
        reference = learner.initial_controller.log_distributions(
            language_BD, tokens0, latency0, actions[:, 1]
        )

    @torch.no_grad()
    def whole_loss() -> float:
        tokens = learner.controller.budget_tokens(budgets).repeat_interleave(4, 0)
        latency = blocks(tokens, language_BD, actions)
        distributions = learner.controller.log_distributions(
            language_BD, tokens, latency, actions[:, 1]
        )
        total = torch.zeros((), dtype=torch.float64)
        for head, (logs, initial) in enumerate(zip(distributions, reference, strict=True)):
            chosen = logs.gather(1, actions[:, head : head + 1]).squeeze(1)
            p, logs, initial = logs.exp(), logs.nan_to_num(neginf=0), initial.nan_to_num(neginf=0)
            kl, entropies = (p * (logs - initial)).sum(1), -(p * logs).sum(1)
            total += (-advantages * chosen + 0.2 * kl - 0.3 * entropies).mean()
        return total.item()

    analytic, numeric = [], []
    for weight in learner.controller.budget_encoder.mlp.parameters():
        for index in torch.randperm(weight.numel(), generator=rng)[:6]:
            value = weight.data.view(-1)
            eps, kept = 1e-5, value[index].item()
            value[index] = kept + eps
            above = whole_loss()
            value[index] = kept - eps
            numeric.append((above - whole_loss()) / (2 * eps))
            value[index] = kept
            analytic.append(weight.grad.view(-1)[index].item())
    analytic, numeric = np.array(analytic), np.array(numeric)
    assert np.linalg.norm(analytic - numeric) < 1e-4 * np.linalg.norm(numeric)


def test_both_ways_matter(tmp_path):
    blocks, rng = FrozenBlocks(torch.float64), torch.Generator().manual_seed(0)
    learner = make_learner(tmp_path)
    language = torch.randn(2, D_MODEL, generator=rng).double()
    groups = run_groups(learner.controller, blocks, language, torch.tensor([120.0, 250.0]), 4, rng)
    rewards = np.random.default_rng(0).normal(size=(2, 2, 4))
    whole = two_way_update(learner, blocks, groups, *rewards)
    measured = learner.learn_from_groups(groups, *rewards)
    assert all(np.abs(grads).max() > 0 for grads in measured.latency_token_grads)
    learner.update(measured, [np.zeros(D_MODEL)] * 2)
    stage1_way = flat_gradient(learner.controller)
    encoder_size = sum(w.numel() for w in learner.controller.budget_encoder.parameters())
    assert (whole - stage1_way)[:encoder_size].norm() > 0.1 * whole[:encoder_size].norm()
    torch.testing.assert_close(whole[encoder_size:], stage1_way[encoder_size:])


def exact_expected_gradient(controller, blocks, language, budget, form, score, constraint):
    """-E[mean over a pair of A grad(log prob)], summed over all 225 x 225 pairs of episodes."""
    log_probs = enumerate_log_probs(controller, blocks, language, budget)
    probs = log_probs.detach().exp()
    first, second = (grid.flatten() for grid in np.meshgrid(range(225), range(225), indexing="ij"))
    pairs = [np.stack((part[first], part[second]), 1) for part in (score, constraint)]
    advantages = torch.from_numpy(combine(form, *pairs)).view(225, 225, 2)
    weights = (probs[:, None] * probs[None, :])[..., None] * advantages / 2
    controller.zero_grad()
    coefficients = weights[..., 0].sum(1) + weights[..., 1].sum(0)
    (-(coefficients * log_probs).sum()).backward()
    return flat_gradient(controller).clone()


@pytest.mark.parametrize("name", list(ADVANTAGE_FORMS))
def test_sampled_estimator_against_the_exact_gradient(tmp_path, name):
    """In groups of two, where every pair can be enumerated, for each form's own expectation.

    Leave-one-out must moreover give the gradient of the expected reward, and mean-only half of
    it; standardising changes the direction, so its expectation is the enumerated one only.
    """
    learner = make_learner(tmp_path, advantage=name)
    controller, blocks = learner.controller, FrozenBlocks(torch.float64)
    numbers, rng = np.random.default_rng(0), torch.Generator().manual_seed(1)
    score, constraint = numbers.normal(size=225), -np.abs(numbers.normal(size=225))
    language = torch.randn(1, D_MODEL, generator=rng).double()
    budget = torch.tensor([180.0])
    exact = exact_expected_gradient(
        controller, blocks, language, budget, ADVANTAGE_FORMS[name], score, constraint
    )
    if name != "group_standardised":
        controller.zero_grad()
        log_probs = enumerate_log_probs(controller, blocks, language, budget)
        (-(log_probs.exp() * torch.from_numpy(score + constraint)).sum()).backward()
        factor = {"leave_one_out": 1.0, "mean_only": 0.5}[name]
        torch.testing.assert_close(exact, factor * flat_gradient(controller))

    row_of = {tuple(action.tolist()): row for row, action in enumerate(ACTIONS)}
    sampled = []
    for _ in range(100):
        groups = run_groups(
            controller, blocks, language.expand(100, -1), budget.expand(100), 2, rng
        )
        rows = np.array([[row_of[tuple(action)] for action in g.actions] for g in groups])
        sampled.append(two_way_update(learner, blocks, groups, score[rows], constraint[rows]))
    samples = torch.stack(sampled)
    directions = torch.randn(7, exact.numel(), generator=rng).double()
    directions = torch.cat((exact[None], directions))
    projected, truth = samples @ directions.T, directions @ exact
    standard_error = projected.std(0) / len(samples) ** 0.5
    assert ((projected.mean(0) - truth).abs() < 3.5 * standard_error).all()
    assert standard_error[0] < 0.15 * truth[0], "too few samples to tell"

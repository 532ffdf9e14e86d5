import dataclasses
import math

import pytest
import torch

from learner.config import EntropySchedule, LossConfig
from learner.losses import (
    LossInputs,
    approximate_kl,
    clipped,
    clipped_surrogate,
    grpo_loss,
    truncated_importance,
)

ADVANTAGES = torch.tensor([1.0, -1.0, 2.0, -2.0])
BY_SURROGATE = ("log_probs", "proximal_log_probs", "behaviour_log_probs", "advantages")


def make_inputs(**changes) -> LossInputs:
    """One surrogate of each episode."""
    zeros = torch.zeros(4)
    for name in BY_SURROGATE:
        if f"{name}_B" in changes:
            changes[f"{name}_BS"] = changes.pop(f"{name}_B")[:, None]
    base = LossInputs(
        log_probs_BS=zeros[:, None],
        proximal_log_probs_BS=zeros[:, None],
        behaviour_log_probs_BS=zeros[:, None],
        advantages_BS=ADVANTAGES[:, None],
        active_B=torch.ones(4, dtype=torch.bool),
        entropies_B4=torch.zeros(4, 4),
        reference_kl_B=zeros,
        entropy_coef=0.0,
    )
    return dataclasses.replace(base, **changes)


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    surrogate = clipped_surrogate(ratio, advantages, 0.2, 0.3)
    torch.testing.assert_close(surrogate, torch.tensor([1.3, -1.5, 0.5, -0.8, 2.2]))
    assert clipped(ratio, advantages, 0.2, 0.3).tolist() == [True, False, False, True, False]


def test_truncated_importance_by_hand():
    proximal = torch.tensor([0.5, 0.25, 0.9]).log()
    behaviour = torch.tensor([0.25, 0.5, 0.1]).log()
    weights = truncated_importance(proximal, behaviour, cap=3.0)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.5, 3.0]))


def test_approximate_kl_by_hand():
    kl = approximate_kl(torch.tensor([0.0, math.log(2)]), torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(kl, torch.tensor([0.0, 1 - math.log(2)]))


def test_loss_by_hand():
    inputs = make_inputs(
        log_probs_B=torch.tensor([1.5, 1.0, 0.5, 1.0]).log(),
        behaviour_log_probs_B=torch.tensor([0.5, 1.0, 1.0, 0.1]).log(),
        active_B=torch.tensor([True, True, True, False]),
        entropies_B4=torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 4),
        reference_kl_B=torch.tensor([1.0, 2.0, 3.0, 100.0]),
        entropy_coef=0.1,
    )
    config = LossConfig(clip_eps_low=0.2, clip_eps_high=0.3, importance_cap=1.5, kl_coef=0.01)
    loss, metrics = grpo_loss(inputs, config)
    policy_loss = -(1.5 * 1.3 - 1.0 + 2.0 * 0.5) / 4
    assert metrics.policy_loss == pytest.approx(policy_loss)
    assert loss.item() == pytest.approx(policy_loss + 0.01 * 6 / 4 - 0.1 * 10)
    assert metrics.loss == pytest.approx(loss.item())
    assert metrics.reference_kl == pytest.approx(2.0)
    assert metrics.clip_share == pytest.approx(1 / 3)
    assert metrics.ratio_mean == pytest.approx(1.0)
    assert metrics.ratio_max == pytest.approx(1.5)
    assert metrics.importance_capped_share == pytest.approx(1 / 3)
    assert metrics.entropies == pytest.approx((1.0, 2.0, 3.0, 4.0))


def test_ratio_one_gives_the_policy_gradient():
    log_probs = torch.zeros(4, requires_grad=True)
    inputs = make_inputs(log_probs_B=log_probs)
    grpo_loss(inputs, LossConfig())[0].backward()
    torch.testing.assert_close(log_probs.grad, -ADVANTAGES / 4)


def test_clipped_episodes_give_no_gradient():
    log_probs = torch.tensor([1.5, 0.5, 0.5, 1.5]).log().requires_grad_()
    grpo_loss(make_inputs(log_probs_B=log_probs), LossConfig())[0].backward()
    assert log_probs.grad is not None
    assert (log_probs.grad == 0).tolist() == [True, True, False, False]


def test_zero_variance_groups_are_masked_from_policy_and_kl_terms():
    log_probs = torch.zeros(4, requires_grad=True)
    kl = torch.ones(4, requires_grad=True)
    entropies = torch.ones(4, 4, requires_grad=True)
    inputs = make_inputs(
        log_probs_B=log_probs,
        reference_kl_B=kl,
        entropies_B4=entropies,
        active_B=torch.tensor([True, False, False, True]),
        entropy_coef=0.1,
    )
    grpo_loss(inputs, LossConfig(kl_coef=0.5))[0].backward()
    assert log_probs.grad is not None
    assert kl.grad is not None
    assert entropies.grad is not None
    assert log_probs.grad.tolist() == [-0.25, 0, 0, 0.5]
    assert kl.grad.tolist() == [0.125, 0, 0, 0.125]
    torch.testing.assert_close(entropies.grad, torch.full((4, 4), -0.025))


def test_all_groups_masked():
    loss, metrics = grpo_loss(
        make_inputs(active_B=torch.zeros(4, dtype=torch.bool)), LossConfig(kl_coef=1.0)
    )
    assert loss.item() == 0
    assert (metrics.ratio_mean, metrics.ratio_max, metrics.clip_share) == (1.0, 1.0, 0.0)


def test_loss_does_not_depend_on_the_order_of_episodes():
    rng = torch.Generator().manual_seed(0)
    fields = {
        name: torch.randn(4, generator=rng)
        for name in (
            *("log_probs_BS", "behaviour_log_probs_BS", "advantages_BS"),
            "reference_kl_B",
        )
    }
    order = torch.tensor([2, 0, 3, 1])
    config = LossConfig(kl_coef=0.3)
    loss, _ = grpo_loss(make_inputs(**fields), config)
    shuffled, _ = grpo_loss(
        make_inputs(**{name: values[order] for name, values in fields.items()}), config
    )
    torch.testing.assert_close(loss, shuffled)


def test_entropy_schedule_by_hand():
    schedule = EntropySchedule(start=0.1, end=0.02, steps=8)
    coefficients = [schedule.coefficient(step) for step in (0, 2, 8, 100)]
    assert coefficients == pytest.approx([0.1, 0.08, 0.02, 0.02])


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        EntropySchedule(steps=0)
    with pytest.raises(ValueError, match="clip_eps_low"):
        LossConfig(clip_eps_low=1.5)
    with pytest.raises(ValueError, match="cap"):
        LossConfig(importance_cap=0.5)


def test_surrogates_of_both_stages_are_clipped_apart_and_added():
    ratio = torch.tensor([[1.5, 1.0], [1.1, 0.5]])
    inputs = make_inputs(
        active_B=torch.ones(2, dtype=torch.bool),
        entropies_B4=torch.zeros(2, 4),
        reference_kl_B=torch.zeros(2),
    )
    inputs = dataclasses.replace(
        inputs,
        log_probs_BS=ratio.log(),
        proximal_log_probs_BS=torch.zeros(2, 2),
        behaviour_log_probs_BS=torch.zeros(2, 2),
        advantages_BS=torch.tensor([[1.0, 2.0], [-1.0, -2.0]]),
    )
    loss, _ = grpo_loss(inputs, LossConfig(clip_eps_low=0.2, clip_eps_high=0.3))
    assert loss.item() == pytest.approx(-((1.3 + 2.0) + (-1.1 - 1.6)) / 2)

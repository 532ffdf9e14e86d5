"""The GRPO loss, pure functions of tensors.

Shapes: B episodes, 4 heads (tier, position, top_k, num_blocks). Three policies occur: the current
one, the proximal one (the learner's when the update began) and the behaviour policy (the rollout
actor's, whose log-probabilities came with the episode).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.checks import check_within


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropySchedule:
    """Coefficient of the entropy bonus: linear from `start` to `end` over `steps` updates."""

    start: float = 0.02
    end: float = 0.002
    steps: int = 1000

    def __post_init__(self) -> None:
        check_within(self, "start", "end", low=0)
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: give at least one step")

    def coefficient(self, step: int) -> float:
        """Returns the coefficient of an update, counted from 0."""
        share = min(max(step / self.steps, 0.0), 1.0)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights and limits of the loss terms.

    Attributes:
        clip_eps_low: the probability ratio is clipped below 1 - clip_eps_low.
        clip_eps_high: the probability ratio is clipped above 1 + clip_eps_high (clip-higher, DAPO,
            Yu et al. 2025).
        importance_cap: upper limit of the importance weight of an episode from a stale batch.
        kl_coef: weight of the KL divergence to the initial controller; 0 for none.
        entropy_head_weights: weight of each head's entropy in the bonus.
    """

    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28
    importance_cap: float = 2.0
    kl_coef: float = 0.0
    entropy_head_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not (0 < self.clip_eps_low < 1 and self.clip_eps_high > 0):
            raise ValueError(
                f"clip range {self.clip_eps_low}, {self.clip_eps_high}: give clip_eps_low in "
                "(0, 1) and a positive clip_eps_high"
            )
        check_within(self, "clip_eps_high", "kl_coef", low=0)
        check_within(self, "importance_cap", low=1)
        if not all(math.isfinite(w) and w >= 0 for w in self.entropy_head_weights):
            raise ValueError(
                f"entropy_head_weights are {self.entropy_head_weights}: give four of at least 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """All inputs of the loss.

    Attributes:
        log_probs_B: current log-probabilities of the actions, summed over the heads;
            differentiable.
        proximal_log_probs_B: the same at the beginning of the update, constant.
        behaviour_log_probs_B: the same when the actions were chosen, constant.
        advantages_B: advantages, constant.
        active_B: bool, False for the episodes of zero-variance groups.
        entropies_B4: entropies of the heads; differentiable.
        reference_kl_B: KL to the initial controller, summed over the heads; differentiable.
        entropy_coef: weight of the entropy bonus.
    """

    log_probs_B: Tensor
    proximal_log_probs_B: Tensor
    behaviour_log_probs_B: Tensor
    advantages_B: Tensor
    active_B: Tensor
    entropies_B4: Tensor
    reference_kl_B: Tensor
    entropy_coef: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LossMetrics:
    """Values from one evaluation of the loss, for the logs.

    Ratios, importance weights, clip share and KLs are taken over the active episodes (0 or 1 by
    definition if there are none), the entropies (nats) over all.
    """

    loss: float
    policy_loss: float
    entropy_bonus: float
    reference_kl: float
    behaviour_kl: float
    clip_share: float
    ratio_mean: float
    ratio_max: float
    importance_mean: float
    importance_capped_share: float
    entropies: tuple[float, float, float, float]


def clipped_surrogate(
    ratio_B: Tensor, advantages_B: Tensor, clip_eps_low: float, clip_eps_high: float
) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A), maximised (PPO, Schulman et al. 2017, eq. 7)."""
    clipped_B = ratio_B.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    return torch.minimum(ratio_B * advantages_B, clipped_B * advantages_B)


def clipped(
    ratio_B: Tensor, advantages_B: Tensor, clip_eps_low: float, clip_eps_high: float
) -> Tensor:
    """Episodes whose ratio is clipped, so that they give no policy gradient: bool [B]."""
    above_B = (advantages_B > 0) & (ratio_B > 1 + clip_eps_high)
    below_B = (advantages_B < 0) & (ratio_B < 1 - clip_eps_low)
    return above_B | below_B


def truncated_importance(
    proximal_log_probs_B: Tensor, behaviour_log_probs_B: Tensor, cap: float
) -> Tensor:
    """min(proximal / behaviour, cap): the correction for stale or differently rounded rollouts.

    Source: the decoupled objective of Hilton et al. 2021 (eq. 5) with truncated weights (IMPALA,
    Espeholt et al. 2018).
    """
    return (proximal_log_probs_B - behaviour_log_probs_B).exp().clamp(max=cap)


def approximate_kl(log_probs_B: Tensor, behaviour_log_probs_B: Tensor) -> Tensor:
    """Estimates KL(behaviour || current) from each action, never negative: r - 1 - log r, [B]."""
    log_ratio_B = log_probs_B - behaviour_log_probs_B
    return log_ratio_B.exp() - 1 - log_ratio_B


def grpo_loss(inputs: LossInputs, config: LossConfig) -> tuple[Tensor, LossMetrics]:
    """The loss of one pass over a batch, and its metrics.

    loss = -mean(w surrogate) + kl_coef mean(KL) - entropy_coef mean(weighted entropy)

    The means are over all B episodes. Those of zero-variance groups count as zero in the first
    two terms, so that the estimator's expectation does not depend on how many there are.
    """
    active_B = inputs.active_B
    ratio_B = (inputs.log_probs_B - inputs.proximal_log_probs_B).exp()
    importance_B = truncated_importance(
        inputs.proximal_log_probs_B, inputs.behaviour_log_probs_B, config.importance_cap
    )
    limits = (config.clip_eps_low, config.clip_eps_high)
    surrogate_B = importance_B * clipped_surrogate(ratio_B, inputs.advantages_B, *limits)
    policy_loss = -surrogate_B.where(active_B, 0.0).mean()
    reference_kl = inputs.reference_kl_B.where(active_B, 0.0).mean()
    head_weights_4 = inputs.entropies_B4.new_tensor(config.entropy_head_weights)
    entropy_bonus = (inputs.entropies_B4 @ head_weights_4).mean()
    loss = policy_loss + config.kl_coef * reference_kl - inputs.entropy_coef * entropy_bonus
    with torch.no_grad():
        metrics = LossMetrics(
            loss=loss.item(),
            policy_loss=policy_loss.item(),
            entropy_bonus=entropy_bonus.item(),
            reference_kl=_mean(inputs.reference_kl_B[active_B]),
            behaviour_kl=_mean(
                approximate_kl(inputs.log_probs_B, inputs.behaviour_log_probs_B)[active_B]
            ),
            clip_share=_mean(clipped(ratio_B, inputs.advantages_B, *limits)[active_B]),
            ratio_mean=_mean(ratio_B[active_B], empty=1.0),
            ratio_max=ratio_B[active_B].max().item() if active_B.any() else 1.0,
            importance_mean=_mean(importance_B[active_B], empty=1.0),
            importance_capped_share=_mean((importance_B >= config.importance_cap)[active_B]),
            entropies=_four(inputs.entropies_B4),
        )
    return loss, metrics


def _mean(values: Tensor, empty: float = 0.0) -> float:
    return values.double().mean().item() if values.numel() else empty


def _four(values_B4: Tensor) -> tuple[float, float, float, float]:
    tier, position, top_k, num_blocks = values_B4.mean(0).tolist()
    return tier, position, top_k, num_blocks

"""The GRPO loss, pure functions of tensors.

Three policies occur: the current one, the proximal one (the learner's when the update began) and
the behaviour policy (the rollout actor's, whose log-probabilities came with the episode).

Shapes: B episodes, S surrogates of an episode (one of all heads, or one of each stage), 4 heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.config import LossConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """All inputs of the loss.

    Attributes:
        log_probs_BS: current log-probabilities of the actions, summed over all heads or those of
            each stage; differentiable.
        proximal_log_probs_BS: the same at the beginning of the update, constant.
        behaviour_log_probs_BS: the same when the actions were chosen, constant.
        advantages_BS: advantages, constant.
        active_B: bool, False for the episodes of zero-variance groups.
        entropies_B4: entropies of the heads; differentiable.
        reference_kl_B: KL to the initial controller, summed over the heads; differentiable.
        entropy_coef: weight of the entropy bonus.
    """

    log_probs_BS: Tensor
    proximal_log_probs_BS: Tensor
    behaviour_log_probs_BS: Tensor
    advantages_BS: Tensor
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
    entropies: tuple[float, ...]


def clipped_surrogate(
    ratio_BS: Tensor, advantages_BS: Tensor, clip_eps_low: float, clip_eps_high: float
) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A), maximised (PPO, Schulman et al. 2017, eq. 7)."""
    clipped_BS = ratio_BS.clamp(1 - clip_eps_low, 1 + clip_eps_high)
    return torch.minimum(ratio_BS * advantages_BS, clipped_BS * advantages_BS)


def clipped(
    ratio_BS: Tensor, advantages_BS: Tensor, clip_eps_low: float, clip_eps_high: float
) -> Tensor:
    """Episodes whose ratio is clipped, so that they give no policy gradient: bool [B, S]."""
    above_BS = (advantages_BS > 0) & (ratio_BS > 1 + clip_eps_high)
    below_BS = (advantages_BS < 0) & (ratio_BS < 1 - clip_eps_low)
    return above_BS | below_BS


def truncated_importance(
    proximal_log_probs_BS: Tensor, behaviour_log_probs_BS: Tensor, cap: float
) -> Tensor:
    """min(proximal / behaviour, cap): the correction for stale or differently rounded rollouts.

    Source: the decoupled objective of Hilton et al. 2021 (eq. 5) with truncated weights (IMPALA,
    Espeholt et al. 2018).
    """
    return (proximal_log_probs_BS - behaviour_log_probs_BS).exp().clamp(max=cap)


def approximate_kl(log_probs_BS: Tensor, behaviour_log_probs_BS: Tensor) -> Tensor:
    """Estimates KL(behaviour || current) from each action, never negative: r - 1 - log r."""
    log_ratio_BS = log_probs_BS - behaviour_log_probs_BS
    return log_ratio_BS.exp() - 1 - log_ratio_BS


def grpo_loss(inputs: LossInputs, config: LossConfig) -> tuple[Tensor, LossMetrics]:
    """The loss of one pass over a batch, and its metrics.

    loss = -mean(w surrogate) + kl_coef mean(KL) - entropy_coef mean(weighted entropy)

    The means are over all B episodes. Those of zero-variance groups count as zero in the first
    two terms, so that the estimator's expectation does not depend on how many there are.
    """
    active_B = inputs.active_B
    ratio_BS = (inputs.log_probs_BS - inputs.proximal_log_probs_BS).exp()
    importance_BS = truncated_importance(
        inputs.proximal_log_probs_BS, inputs.behaviour_log_probs_BS, config.importance_cap
    )
    limits = (config.clip_eps_low, config.clip_eps_high)
    surrogate_BS = importance_BS * clipped_surrogate(ratio_BS, inputs.advantages_BS, *limits)
    policy_loss = -surrogate_BS.where(active_B[:, None], 0.0).sum(-1).mean()
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
                approximate_kl(inputs.log_probs_BS, inputs.behaviour_log_probs_BS)[active_B]
            ),
            clip_share=_mean(clipped(ratio_BS, inputs.advantages_BS, *limits)[active_B]),
            ratio_mean=_mean(ratio_BS[active_B], empty=1.0),
            ratio_max=ratio_BS[active_B].max().item() if active_B.any() else 1.0,
            importance_mean=_mean(importance_BS[active_B], empty=1.0),
            importance_capped_share=_mean((importance_BS >= config.importance_cap)[active_B]),
            entropies=tuple(inputs.entropies_B4.mean(0).cpu().tolist()),
        )
    return loss, metrics


def _mean(values: Tensor, empty: float = 0.0) -> float:
    return values.double().mean().item() if values.numel() else empty

"""A batch of groups as tensors, and how one is saved for inspection.

Shapes: N groups, G episodes of each, B = N G episodes in the order of groups, D d_model, I length
of the image feature, 4 heads, S advantages of an episode (one, or one of each stage).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from learner.advantages import AdvantageFn, combine, zero_variance
from rollout.group_rollout import GroupRollout

NUM_STAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeBatch:
    """The inputs of one update; every field but `latency_token_BD` is constant."""

    budgets_ms_N: Tensor
    prices_N: Tensor
    language_feature_ND: Tensor
    image_feature_NI: Tensor
    latency_token_BD: Tensor
    actions_B4: Tensor
    behaviour_log_probs_B4: Tensor
    advantages_BS: Tensor
    has_spread_N: Tensor
    active_N: Tensor
    group_size: int

    @property
    def active_B(self) -> Tensor:
        """Whether each episode belongs to a group that is not masked."""
        return self.active_N.repeat_interleave(self.group_size)

    @property
    def is_residual(self) -> bool:
        """Whether advantages are residuals of each stage, rather than of whole episodes."""
        return self.advantages_BS.shape[1] == NUM_STAGES

    def by_surrogate(self, log_probs_B4: Tensor) -> Tensor:
        """Log-probabilities of what each advantage is for: [B, S]."""
        return log_probs_B4.unflatten(1, (self.advantages_BS.shape[1], -1)).sum(-1)

    def with_residuals(self, residuals_B2: Tensor) -> EpisodeBatch:
        """The batch with residuals for advantages; no group is masked, because all have some."""
        return replace(self, advantages_BS=residuals_B2, active_N=torch.ones_like(self.active_N))


def make_batch(
    groups: Sequence[GroupRollout],
    score_rewards_NG: np.ndarray,
    constraint_rewards_NG: np.ndarray,
    form: AdvantageFn,
    like: Tensor,
) -> EpisodeBatch:
    """Stacks groups of one size, with the dtype and device of `like`.

    Raises:
        ValueError: no groups, groups of different sizes, or rewards of another shape.
    """
    size = _common_size(groups, score_rewards_NG)
    score_NG = np.asarray(score_rewards_NG, np.float64)
    constraint_NG = np.asarray(constraint_rewards_NG, np.float64)
    advantages_NG = combine(form, score_NG, constraint_NG)
    has_spread_N = ~(zero_variance(score_NG) & zero_variance(constraint_NG))

    def floats(arrays: Sequence[np.ndarray | float]) -> Tensor:
        return torch.from_numpy(np.array(arrays)).to(like.device, like.dtype)

    return EpisodeBatch(
        budgets_ms_N=floats([group.budget_ms for group in groups]),
        prices_N=floats([group.price for group in groups]),
        language_feature_ND=floats([group.language_feature for group in groups]),
        image_feature_NI=floats([group.image_feature for group in groups]),
        latency_token_BD=floats([group.latency_tokens for group in groups]).flatten(0, 1),
        actions_B4=torch.from_numpy(np.concatenate([group.actions for group in groups])).to(
            like.device
        ),
        behaviour_log_probs_B4=floats([group.log_probs for group in groups]).flatten(0, 1),
        advantages_BS=floats([advantages_NG]).flatten()[:, None],
        has_spread_N=torch.from_numpy(has_spread_N).to(like.device),
        active_N=torch.from_numpy(has_spread_N).to(like.device),
        group_size=size,
    )


def _common_size(groups: Sequence[GroupRollout], score_rewards_NG: np.ndarray) -> int:
    sizes = {group.group_size for group in groups}
    if len(sizes) != 1:
        raise ValueError(
            f"a batch has groups of sizes {sorted(sizes)}: give at least one group, all of one size"
        )
    size = sizes.pop()
    if np.shape(score_rewards_NG) != (len(groups), size):
        raise ValueError(
            f"score rewards have shape {np.shape(score_rewards_NG)} for {len(groups)} groups of "
            f"{size}: give one for each episode"
        )
    return size


def for_inspection(
    groups: Sequence[GroupRollout],
    score_rewards_NG: np.ndarray,
    constraint_rewards_NG: np.ndarray,
    budget_token_grads_ND: np.ndarray,
) -> bytes:
    """A batch as an .npz that `np.load` reads without pickle."""
    arrays = {
        name: np.stack([getattr(group, name) for group in groups])
        for name in (
            "language_feature",
            "image_feature",
            "actions",
            "log_probs",
            "latency_tokens",
            "scores",
            "latencies_ms",
        )
    }
    for name in ("group_id", "sample_id", "budget_ms", "price", "policy_version", "actor"):
        arrays[name] = np.array([getattr(group, name) for group in groups])
    arrays["score_rewards"] = np.asarray(score_rewards_NG)
    arrays["constraint_rewards"] = np.asarray(constraint_rewards_NG)
    arrays["budget_token_grads"] = budget_token_grads_ND
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()

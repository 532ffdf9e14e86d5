"""Measured groups against what the outcome model expects of them.

Shapes: N groups, G episodes of each, B = N G episodes, D d_model, A = 3 tiers, P = 5 positions,
K = 5 top_ks, N = 5 num_blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.reward import BudgetReward
from learner.objective import Gains, value_of_stages
from learner.replay import Replay, logits_of, prefixes_of
from learner.replay_buffer import Episodes
from policy.controller import Controller
from rollout.group_rollout import GroupRollout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpectedGroups:
    """What the outcome model expects of a step's groups, from which it has not learned yet.

    Attributes:
        episodes: the groups.
        gains: of every configuration on their samples.
        residuals_B2: measured less expected rewards: of stage 1's choices, and of all choices.
        weight: of the residuals.
        worth: what an outcome is worth.
    """

    episodes: Episodes
    gains: Gains
    residuals_B2: Tensor
    weight: float
    worth: BudgetReward

    @classmethod
    def of(
        cls,
        groups: Sequence[GroupRollout],
        rewards_NG: Tensor,
        replay: Replay,
        worth: BudgetReward,
    ) -> ExpectedGroups:
        """Predicts groups, and compares their rewards with the prediction."""
        episodes = Episodes.of(groups, replay.tasks).to(rewards_NG)
        gains = replay.gains(episodes, worth)
        return cls(
            episodes=episodes,
            gains=gains,
            residuals_B2=residuals(episodes, gains, rewards_NG),
            weight=replay.config.residual_weight,
            worth=worth,
        )

    def backward(
        self, controller: Controller, tokens: tuple[Tensor, Tensor], temperature: float
    ) -> None:
        """Adds the expectation's gradient to those of budget tokens [N, D], latency tokens [B, D].

        The stages get none here: theirs is taken on remembered groups.
        """
        stages = logits_of(controller, self.episodes, *tokens)
        value = value_of_stages(*stages, self.gains, prefixes_of(self.episodes), temperature)
        for token, gradient in zip(tokens, torch.autograd.grad(-value, tokens), strict=True):
            assert token.grad is not None
            token.grad += gradient


def residuals(episodes: Episodes, gains: Gains, rewards_NG: Tensor) -> Tensor:
    """Measured less expected rewards, [B, 2]: of stage 1's choices, and of all choices.

    Stage 1's choices are expected to be followed by the best ones of stage 2, as in
    `value_of_stages`. Each is a control variate of its stage (doubly robust: Dudik et al. 2011):
    with the expectation over the same contexts by the same model, the sum of both gradients is
    unbiased however wrong the model is. That is so for the budget encoder. For the stages it holds
    nearly: the model is fitted to the step's groups in between, and the expectation of stage 2 is
    over prefixes that earlier policies chose.
    """
    rows_B, tier_B, position_B = prefixes_of(episodes)
    top_k_B, num_blocks_B = episodes.actions_MG4.flatten(0, 1)[:, 2:].unbind(1)
    surplus_B = rewards_NG.flatten() - gains.best_B[rows_B]
    after_BKN = gains.relative_BAPKN[rows_B, tier_B, position_B]
    first_B = surplus_B - after_BKN.amax((1, 2))
    second_B = (
        surplus_B
        - after_BKN[torch.arange(len(rows_B), device=rows_B.device), top_k_B, num_blocks_B]
    )
    return torch.stack((first_B, second_B), 1)

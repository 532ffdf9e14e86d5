"""Measured groups against what the outcome model expects of them.

Shapes: N groups, G episodes of each, B = N G episodes, A = 3 tiers, P = 5 positions, K = 5 top_ks,
N = 5 num_blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objective import Gains
from learner.replay import prefixes_of
from learner.replay_buffer import Episodes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpectedGroups:
    """What the outcome model expects of a step's groups.

    Attributes:
        episodes: the groups.
        gains: of every configuration on their samples.
    """

    episodes: Episodes
    gains: Gains

    def residuals(self, rewards_NG: Tensor) -> Tensor:
        """Measured less expected rewards, [B, 2]: of stage 1's choices, and of all choices.

        Stage 1's choices are expected to be followed by the best ones of stage 2, as in
        `value_of_stages`. Each is a control variate of its stage (doubly robust: Dudik et al.
        2011), so that expectation and residual together are unbiased however wrong the model is.
        """
        rows_B, tier_B, position_B = prefixes_of(self.episodes)
        top_k_B, num_blocks_B = self.episodes.actions_MG4.flatten(0, 1)[:, 2:].unbind(1)
        surplus_B = rewards_NG.flatten() - self.gains.best_B[rows_B]
        after_BKN = self.gains.relative_BAPKN[rows_B, tier_B, position_B]
        first_B = surplus_B - after_BKN.amax((1, 2))
        second_B = surplus_B - after_BKN[torch.arange(len(rows_B)), top_k_B, num_blocks_B]
        return torch.stack((first_B, second_B), 1)

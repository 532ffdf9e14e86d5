"""Stage 1: language and budget to image tier and insertion position.

Shapes: B episodes, D d_model, 3 tiers, 5 positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.spec import STAGE1_SIZES

HEAD_INIT_STD = 0.01


class Stage1Logits(NamedTuple):
    """Logits of the two choices made before the vision encoder."""

    tier_B3: Tensor
    position_B5: Tensor


class Stage1(nn.Module):
    """A small MLP; each wide input is first normalised and projected down.

    The inputs may have any scale: LayerNorm without weights (the projection has them) removes
    it. The heads start small, so that the initial policy is near uniform.
    """

    def __init__(self, d_model: int, projection_dim: int, hidden_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.language = nn.Linear(d_model, projection_dim)
        self.budget = nn.Linear(d_model, projection_dim)
        self.hidden = nn.Linear(2 * projection_dim, hidden_dim)
        self.heads = nn.Linear(hidden_dim, sum(STAGE1_SIZES))
        nn.init.normal_(self.heads.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(self.heads.bias)

    def forward(self, language_feature_BD: Tensor, budget_token_BD: Tensor) -> Stage1Logits:
        """Returns the logits of tier and position, by choice index."""
        projected = (
            self.language(self.norm(language_feature_BD)),
            self.budget(self.norm(budget_token_BD)),
        )
        hidden = nn.functional.gelu(self.hidden(nn.functional.gelu(torch.cat(projected, dim=-1))))
        tier_B3, position_B5 = self.heads(hidden).split(STAGE1_SIZES, dim=-1)
        return Stage1Logits(tier_B3, position_B5)

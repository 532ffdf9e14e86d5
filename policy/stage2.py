"""Stage 2: latency token and insertion position to top_k and num_blocks.

Shapes: B episodes, D d_model, 5 top_k choices, 5 num_blocks choices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from envs.action_masks import num_blocks_mask
from envs.spec import POSITIONS, STAGE2_SIZES
from policy.stage1 import HEAD_INIT_STD


class Stage2Logits(NamedTuple):
    """Logits of the two choices made inside the prefill; masked num_blocks are -inf."""

    top_k_B5: Tensor
    num_blocks_B5: Tensor


class Stage2(nn.Module):
    """A small MLP on the normalised latency token and the insertion position.

    Latency tokens of a real model have norms of tens to hundreds and grow with the position:
    LayerNorm removes the scale, and the position embedding gives the depth.
    """

    masked_positions_P5: Tensor

    def __init__(self, d_model: int, projection_dim: int, hidden_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.latency = nn.Linear(d_model, projection_dim)
        self.position = nn.Embedding(len(POSITIONS), projection_dim)
        self.hidden = nn.Linear(2 * projection_dim, hidden_dim)
        self.heads = nn.Linear(hidden_dim, sum(STAGE2_SIZES))
        nn.init.normal_(self.heads.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(self.heads.bias)
        masked = ~np.stack([num_blocks_mask(position) for position in POSITIONS])
        self.register_buffer("masked_positions_P5", torch.from_numpy(masked), persistent=False)

    def forward(self, latency_token_BD: Tensor, position_index_B: Tensor) -> Stage2Logits:
        """Returns the logits of top_k and num_blocks, by choice index.

        Args:
            latency_token_BD: the budget token's hidden state after block p.
            position_index_B: int64 index of p in `envs.spec.POSITIONS` (0 for p=1).
        """
        projected = (
            self.latency(self.norm(latency_token_BD)),
            self.position(position_index_B),
        )
        hidden = nn.functional.gelu(self.hidden(nn.functional.gelu(torch.cat(projected, dim=-1))))
        top_k_B5, num_blocks_B5 = self.heads(hidden).split(STAGE2_SIZES, dim=-1)
        masked_B5 = self.masked_positions_P5[position_index_B]
        return Stage2Logits(top_k_B5, num_blocks_B5.masked_fill(masked_B5, -torch.inf))

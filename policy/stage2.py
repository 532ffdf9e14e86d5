"""Stage 2: latency token and insertion position to the choices made inside the prefill.

Shapes: B episodes, D d_model, P positions, S the choices of all heads of the stage.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from envs.action_masks import stage2_allowed
from envs.spec import POSITIONS, STAGE2_SIZES
from policy.layers import Linear, Module, gelu, normalised
from policy.stage1 import HEAD_INIT_STD

Stage2Logits = tuple[Tensor, ...]
"""Logits by choice index of the heads that decide inside the prefill, in the order of
`envs.spec.STAGE2_HEADS`; masked choices are -inf."""


class Stage2(Module):
    """A small MLP on the normalised latency token and the insertion position.

    Latency tokens of a real model have norms of tens to hundreds and grow with the position:
    LayerNorm removes the scale, and the position embedding gives the depth.
    """

    mask_PS: Tensor

    def __init__(self, d_model: int, projection_dim: int, hidden_dim: int):
        super().__init__()
        self.latency = Linear(d_model, projection_dim)
        self.position = nn.Embedding(len(POSITIONS), projection_dim)
        self.hidden = Linear(2 * projection_dim, hidden_dim)
        self.heads = Linear(hidden_dim, sum(STAGE2_SIZES))
        nn.init.normal_(self.heads.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(self.heads.bias)
        allowed_PS = np.stack([stage2_allowed(position) for position in POSITIONS])
        mask_PS = torch.zeros(allowed_PS.shape).masked_fill_(
            ~torch.from_numpy(allowed_PS), -torch.inf
        )
        self.register_buffer("mask_PS", mask_PS, persistent=False)

    def forward(self, latency_token_BD: Tensor, position_index_B: Tensor) -> Stage2Logits:
        """Returns the logits of stage 2's heads: top_k [B, 5] and num_blocks [B, 5].

        Args:
            latency_token_BD: the budget token's hidden state after block p.
            position_index_B: int64 index of p in `envs.spec.POSITIONS` (0 for p=1).
        """
        projected = (
            self.latency(normalised(latency_token_BD)),
            nn.functional.embedding(position_index_B, self.position.weight),
        )
        hidden = gelu(self.hidden(gelu(torch.cat(projected, dim=-1))))
        logits_BS = self.heads(hidden) + nn.functional.embedding(position_index_B, self.mask_PS)
        return logits_BS.split_with_sizes(STAGE2_SIZES, dim=-1)

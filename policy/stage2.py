"""Stage 2: latency token and insertion position to the choices made inside the prefill.

Shapes: B episodes, D d_model, P positions, S the choices of all heads of the stage.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from envs.action_masks import stage2_allowed
from envs.spec import POSITIONS, STAGE2_SIZES
from policy.stage1 import HEAD_INIT_STD

Stage2Logits = tuple[Tensor, ...]
"""Logits by choice index of the heads that decide inside the prefill, in the order of
`envs.spec.STAGE2_HEADS`; masked choices are -inf."""


class Stage2(nn.Module):
    """A small MLP on the normalised latency token and the insertion position.

    Latency tokens of a real model have norms of tens to hundreds and grow with the position:
    LayerNorm removes the scale, and the position embedding gives the depth.
    """

    masked_PS: Tensor

    def __init__(self, d_model: int, projection_dim: int, hidden_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.latency = nn.Linear(d_model, projection_dim)
        self.position = nn.Embedding(len(POSITIONS), projection_dim)
        self.hidden = nn.Linear(2 * projection_dim, hidden_dim)
        self.heads = nn.Linear(hidden_dim, sum(STAGE2_SIZES))
        nn.init.normal_(self.heads.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(self.heads.bias)
        masked = ~np.stack([stage2_allowed(position) for position in POSITIONS])
        self.register_buffer("masked_PS", torch.from_numpy(masked), persistent=False)

    def forward(self, latency_token_BD: Tensor, position_index_B: Tensor) -> Stage2Logits:
        """Returns the logits of stage 2's heads: top_k [B, 5] and num_blocks [B, 5].

        Args:
            latency_token_BD: the budget token's hidden state after block p.
            position_index_B: int64 index of p in `envs.spec.POSITIONS` (0 for p=1).
        """
        projected = (
            self.latency(self.norm(latency_token_BD)),
            self.position(position_index_B),
        )
        hidden = nn.functional.gelu(self.hidden(nn.functional.gelu(torch.cat(projected, dim=-1))))
        logits_BS = self.heads(hidden).masked_fill(self.masked_PS[position_index_B], -torch.inf)
        return logits_BS.split(STAGE2_SIZES, dim=-1)

"""A fixed random network in place of the frozen blocks up to the insertion position.

Shapes: B episodes, D d_model, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs.spec import POSITIONS, TIERS


class StandInBlocks(nn.Module):
    """A fixed random network in place of the frozen blocks up to the insertion position.

    Each block is a residual step, as in the model: h + W2 tanh(W1 norm(h) + context), where the
    context is a linear function of the image tier and of the sample's language feature.
    """

    def __init__(self, d_model: int, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        depth = max(POSITIONS)

        def fixed(*shape: int, scale: float) -> nn.Parameter:
            values = torch.randn(shape, generator=rng) * scale
            return nn.Parameter(values, requires_grad=False)

        spread = d_model**-0.5
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.inner_PDD = fixed(depth, d_model, d_model, scale=spread)
        self.outer_PDD = fixed(depth, d_model, d_model, scale=spread)
        self.feature_PDD = fixed(depth, d_model, d_model, scale=spread)
        self.tier_P3D = fixed(depth, len(TIERS), d_model, scale=1.0)

    def forward(
        self, budget_token_BD: Tensor, feature_BD: Tensor, tier_B: Tensor, position_B: Tensor
    ) -> Tensor:
        """Returns latency tokens [B, D]; tier and position are choice indices."""
        hidden_BD, feature_BD = budget_token_BD, self.norm(feature_BD)
        states = []
        for block in range(max(POSITIONS)):
            context_BD = feature_BD @ self.feature_PDD[block] + self.tier_P3D[block][tier_B]
            inner_BD = torch.tanh(self.norm(hidden_BD) @ self.inner_PDD[block] + context_BD)
            hidden_BD = hidden_BD + inner_BD @ self.outer_PDD[block]
            states.append(hidden_BD)
        rows_B = torch.arange(len(position_B))
        return torch.stack(states)[position_B, rows_B]

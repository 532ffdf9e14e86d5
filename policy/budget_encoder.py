"""The budget encoder: milliseconds to one token of the frozen model's width.

Shapes: B budgets, S sinusoid channels (256), D d_model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from envs.budgets import BudgetRange

SINUSOID_DIM = 256


def frequencies(dim: int = SINUSOID_DIM) -> Tensor:
    """Frequencies w_i = 10000^(-2i / dim) of the sinusoids, float64 [dim / 2]."""
    return torch.exp(-math.log(10_000.0) * torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def sinusoids(scaled_B: Tensor, frequencies: Tensor) -> Tensor:
    """Fixed sinusoidal encoding of already scaled budgets: [B] to [B, dim].

    Channel 2i is sin(x w_i) and channel 2i + 1 is cos(x w_i): the position encoding of Vaswani et
    al. 2017 (section 3.5) at the real-valued position x. The scale of x is the caller's.
    """
    angles = scaled_B[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class BudgetEncoder(nn.Module):
    """Maps budgets in ms to budget tokens; only `mlp` has weights.

    A budget is mapped to [0, 1] by the run's range, multiplied by `sinusoid_scale`, encoded by
    fixed sinusoids, and projected to the model's width. One outside the range is clipped to it:
    the sinusoids of untrained budgets would be meaningless.
    """

    frequencies: Tensor

    def __init__(self, d_model: int, budget_range: BudgetRange, sinusoid_scale: float = 1.0):
        super().__init__()
        self.budget_range = budget_range
        self.sinusoid_scale = sinusoid_scale
        self.register_buffer("frequencies", frequencies(), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(SINUSOID_DIM, d_model),
            nn.LayerNorm(d_model),
            nn.GELU(),
            nn.Linear(d_model, d_model),
            nn.LayerNorm(d_model),
        )

    def forward(self, budgets_ms_B: Tensor) -> Tensor:
        """Returns the budget tokens [B, D] of budgets [B] in ms."""
        weight = next(self.mlp.parameters())
        low_ms, high_ms = self.budget_range.low_ms, self.budget_range.high_ms
        budgets_ms_B = budgets_ms_B.to(weight.device, torch.float64).clamp(low_ms, high_ms)
        normalised_B = (budgets_ms_B - low_ms) / (high_ms - low_ms)
        encoded = sinusoids(normalised_B * self.sinusoid_scale, self.frequencies)
        return self.mlp(encoded.to(weight.dtype))

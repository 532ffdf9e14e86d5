"""The budget encoder: a budget in ms and a price of time to one token of the model's width.

Shapes: B budgets, S sinusoid channels (256), D d_model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.budgets import BudgetRange
from envs.prices import PriceRange
from policy.layers import GELU, LayerNorm, Linear, Module, Sequential

SINUSOID_DIM = 256

PRICE_SCALE = 10.0
"""Factor on the normalised price before the sinusoids: policies change smoothly with it."""

FREE_PLACE = -0.5
"""Where the price zero, which has no logarithm, lies next to the range that is [0, 1]."""


def waves(
    dim: int = SINUSOID_DIM, scale: float = 1.0, origin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Slopes and phases of the sinusoids' channels, float64 [dim] each.

    The angle of a channel at x is `phase + slope * x`. Channels 2i and 2i + 1 are sine and cosine,
    the sine a quarter turn ahead, of `(x - origin) * scale * w_i`, with w_i = 10000^(-2i / dim).
    """
    pairs = torch.arange(0, dim, 2, dtype=torch.float64)
    slopes = scale * torch.exp(-math.log(10_000.0) * pairs / dim).repeat_interleave(2)
    quarters = torch.tensor([0.0, math.pi / 2], dtype=torch.float64).repeat(dim // 2)
    return slopes, quarters - slopes * origin


def sinusoids(x_BC: Tensor, slopes_CS: Tensor, phases_CS: Tensor) -> Tensor:
    """Fixed sinusoidal encoding of C numbers each: [B, C] to [B, C S].

    With scale 1 and origin 0 it is the position encoding of Vaswani et al. 2017 (section 3.5) at
    the real-valued position x.
    """
    return torch.addcmul(phases_CS, x_BC[..., None], slopes_CS).sin().flatten(1)


class BudgetEncoder(Module):
    """Maps budgets in ms, and perhaps prices, to budget tokens; only `mlp` has weights.

    A budget is mapped to [0, 1] by the run's range, multiplied by `sinusoid_scale` and encoded by
    fixed sinusoids; so is the logarithm of a price, with a factor of its own. The MLP projects both
    to the model's width. A budget or price outside its range is clipped to it: the sinusoids of
    untrained ones would be meaningless. Without a range of prices, the token carries the budget
    alone.
    """

    slopes: Tensor
    phases: Tensor

    def __init__(
        self,
        d_model: int,
        budget_range: BudgetRange,
        sinusoid_scale: float = 1.0,
        price_range: PriceRange | None = None,
    ):
        super().__init__()
        self.budget_range, self.price_range = budget_range, price_range
        scale = sinusoid_scale / (budget_range.high_ms - budget_range.low_ms)
        all_waves = [waves(scale=scale, origin=budget_range.low_ms)]
        if price_range is not None:
            all_waves.append(waves(scale=PRICE_SCALE))
        slopes, phases = zip(*all_waves, strict=True)
        self.register_buffer("slopes", torch.stack(slopes), persistent=False)
        self.register_buffer("phases", torch.stack(phases), persistent=False)
        self.mlp = Sequential(
            Linear(SINUSOID_DIM * len(all_waves), d_model),
            LayerNorm(d_model),
            GELU(),
            Linear(d_model, d_model),
            LayerNorm(d_model),
        )

    def forward(self, budgets_ms_B: Tensor, prices_B: Tensor | None = None) -> Tensor:
        """Returns the budget tokens [B, D] of budgets [B] in ms.

        Prices [B] are zero by default. An encoder without a range of prices does not look at them.
        """
        low_ms, high_ms = self.budget_range.low_ms, self.budget_range.high_ms
        first = next(iter(self.mlp))
        assert isinstance(first, Linear)
        budgets_ms_B = budgets_ms_B.to(self.slopes.device, torch.float64).clamp(low_ms, high_ms)
        x_BC = budgets_ms_B[:, None]
        if self.price_range is not None:
            prices_B = torch.zeros_like(budgets_ms_B) if prices_B is None else prices_B
            places_B = _places(prices_B.to(budgets_ms_B), self.price_range)
            x_BC = torch.stack((budgets_ms_B, places_B), dim=1)
        encoded = sinusoids(x_BC, self.slopes, self.phases)
        return self.mlp(encoded.to(first.weight.dtype))


def _places(prices_B: Tensor, own: PriceRange) -> Tensor:
    """Where prices lie in the range of their logarithms, [0, 1]; zero lies before it."""
    logs_B = (prices_B.clamp(own.low, own.high) / own.low).log()
    return (logs_B / math.log(own.high / own.low)).where(prices_B > 0, FREE_PLACE)

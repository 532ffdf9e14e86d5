"""Modules and functions of the controller, made for the single row of a request.

There, what PyTorch does around the arithmetic takes longer than the arithmetic: a module's call
looks for hooks, and on a CPU GELU in float32 sets up a kernel of oneDNN. These compute the same
without it; hooks on the modules are not called. `python -m benchmarks.budget_row` measures the sum.

Shapes: B rows, K width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Module(nn.Module):
    """A module whose call is its `forward` and nothing else."""

    def __call__(self, *inputs: Any) -> Any:
        """What `forward` returns."""
        return self.forward(*inputs)


class Linear(nn.Linear):
    """`nn.Linear`."""

    def __call__(self, x_BK: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        return F.linear(x_BK, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm`."""

    def __call__(self, x_BK: Tensor) -> Tensor:
        """[B, K], kept."""
        return torch.layer_norm(x_BK, self.normalized_shape, self.weight, self.bias, self.eps)


class GELU(nn.GELU):
    """`nn.GELU`, as `gelu` computes it."""

    def __call__(self, x_BK: Tensor) -> Tensor:
        """[B, K], kept."""
        return gelu(x_BK)


class Sequential(nn.Sequential):
    """`nn.Sequential`."""

    def __call__(self, x_BK: Tensor) -> Tensor:
        """What the last layer returns."""
        for layer in self:
            x_BK = layer(x_BK)
        return x_BK


def normalised(x_BK: Tensor) -> Tensor:
    """LayerNorm without weights."""
    return torch.layer_norm(x_BK, x_BK.shape[-1:])


def gelu(x_BK: Tensor) -> Tensor:
    """GELU; a single row on a CPU is computed in float64, for which torch has a kernel of its own.

    For many rows that kernel is several times as slow as oneDNN's.
    """
    if len(x_BK) > 1 or x_BK.device.type != "cpu":
        return F.gelu(x_BK)
    return F.gelu(x_BK.double()).to(x_BK.dtype)

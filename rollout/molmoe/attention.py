"""RMSNorm, rotary embedding and cached causal attention.

Shapes: B batch, T new tokens, S all tokens, D d_model, H heads, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollout.molmoe.cache import BlockCache
from rollout.molmoe.config import MolmoEConfig


def wide(x: Tensor) -> Tensor:
    """At least float32, where the published code computes in float32."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """Root-mean-square norm: float32 inside, cast back, then times the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        normed = F.rms_norm(wide(x), self.weight.shape, None, self.eps)
        return normed.to(x.dtype) * self.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionContext:
    """Inputs that all blocks of one pass share.

    Attributes:
        cos: cosines of the new tokens' angles, float32 [B or 1, 1, T, K].
        sin: sines, in the same form.
        mask: None for plain causal attention, else bool [B, 1, T, S], True where a new token
            may attend.
        store: whether the new tokens' keys and values stay in the cache.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    store: bool = True


class Rotary:
    """Table of rotary angles, float32, grown on demand and kept on the device."""

    def __init__(self, config: MolmoEConfig) -> None:
        self.config = config
        self._cos = torch.empty(0)
        self._sin = torch.empty(0)

    def table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions 0 .. at least length - 1: [length', K] each.

        Raises:
            ValueError: if `length` exceeds the model's positions.
        """
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"{length} tokens exceed the model's {limit} positions: shorten it")
        if len(self._cos) < length or self._cos.device != device:
            with torch.inference_mode(False):  # for passes with and without gradients
                size = min(limit, max(2 * length, 512))
                dim = self.config.head_dim
                steps = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
                frequencies = 1.0 / self.config.rope_theta**steps
                angles = torch.outer(torch.arange(size, device=device).float(), frequencies)
                angles = torch.cat([angles, angles], dim=-1)
                self._cos, self._sin = angles.cos(), angles.sin()
        return self._cos, self._sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies the rotary embedding (rotate-half) at given angles in float32 and casts back.

    Args:
        x: queries or keys, [..., K].
        cos: cosines of the rows' angles, float32, broadcast to x.
        sin: their sines.
    """
    full = wide(x)
    first, second = full.chunk(2, dim=-1)
    return (full * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Self-attention with q and k normalised over the full width before the split into heads."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        dim, eps = config.d_model, config.norm_eps
        self.n_heads = config.n_heads
        self.attn_norm = RMSNorm(dim, eps)
        self.att_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.q_norm = RMSNorm(dim, eps)
        self.k_norm = RMSNorm(dim, eps)
        self.attn_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BTD: Tensor, cache: BlockCache, context: AttentionContext) -> Tensor:
        """Attends over the cache and the new tokens: [B, T, D] -> [B, T, D], residual not added."""
        q, k, v = self.att_proj(self.attn_norm(x_BTD)).chunk(3, dim=-1)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = (rotate(t, context.cos, context.sin) for t in (q, k))
        if context.store:
            k, v = cache.append(k, v)
        elif cache.length:
            past_k, past_v = cache.valid()
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        starts_empty = context.mask is None and q.shape[2] > 1
        out = F.scaled_dot_product_attention(q, k, v, context.mask, is_causal=starts_empty)
        return self.attn_out(out.transpose(1, 2).flatten(2))

"""Forward pass for training: batched, many questions per image in one sequence, dense experts.

It uses the modules of `rollout.molmoe` (a test checks that both forward passes agree), but runs
them in a way that trains fast on a CPU.

Shapes: B scenes, T tokens, D d_model, H heads (in `NEH`: hidden width of an expert), K head width,
E experts, k experts per token, N = B * T, L looks, G guided heads, P tokens of the prefix (in
`CP`, `BCPX`: patches), C crops, X values of a patch, V vision tokens of a crop, F = E H, M
selected positions, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from launch.pretraining.pixels import TierLayout
from rollout.molmoe import MolmoE, vision
from rollout.molmoe.attention import Attention, RMSNorm
from rollout.molmoe.moe import SparseMoE


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """Output of the decoder blocks for a batch.

    Attributes:
        x_BTD: hidden states after the last block.
        balance: load-balance loss, 1 if experts are used evenly.
        dominance: dominance loss: how far the share of the weaker experts is off its target.
        blindness: attention loss of the guided heads, 0 without guides.
    """

    x_BTD: Tensor
    balance: Tensor
    dominance: Tensor
    blindness: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """Attention targets of some tokens in one block.

    Attributes:
        rows_L: scene of each token.
        places_L: position of each token in the whole sequence.
        shown_LGP: bool, the tokens of the prefix that each guided head should attend to.
    """

    rows_L: Tensor
    places_L: Tensor
    shown_LGP: Tensor

    def blindness(self, weights_BHTT: Tensor) -> Tensor:
        """Mean of -log(attention mass of the guided heads on their targets)."""
        seen = weights_BHTT[self.rows_L, :GUIDED_HEADS, self.places_L, : self.shown_LGP.shape[2]]
        mass_LG = (seen.float() * self.shown_LGP).sum(-1)
        return -(mass_LG + 1e-4).log().mean()


GUIDED_HEADS = 2
"""Number of heads, the first ones of a guided block, whose attention is supervised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Attention layout: a shared prefix, then questions that cannot attend to one another.

    Attributes:
        bias: 0 where a token may attend, -inf elsewhere, [B, 1, T, T].
        cos: [B, 1, T, K].
        sin: [B, 1, T, K].
        prefix: number of tokens of the shared prefix.
        easy: whether a token belongs to an easy question, bool [B, T].
    """

    bias: Tensor
    cos: Tensor
    sin: Tensor
    prefix: int
    easy: Tensor


def make_layout(
    segments_BT: Tensor,
    positions_BT: Tensor,
    easy_BT: Tensor,
    rope: tuple[int, float],
    dtype: torch.dtype,
) -> Layout:
    """Builds the layout; segment 0 is the prefix, segments from 1 are the questions.

    Every token attends to itself, so no softmax is NaN. `rope` is (head width, theta).
    """
    head_dim, theta = rope
    length = segments_BT.shape[1]
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    seen = (same | (segments_BT == 0)[:, None, :]) & torch.ones(length, length).tril().bool()
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = positions_BT[..., None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return Layout(
        bias=bias[:, None],
        cos=angles.cos().to(dtype),
        sin=angles.sin().to(dtype),
        prefix=int((segments_BT[0] == 0).sum()),
        easy=easy_BT,
    )


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Replaces the vision encoder's attention, whose backward pass is slow on a CPU."""
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def vision_tokens(
    model: MolmoE, crops_BCPX: Tensor, layout: TierLayout, dtype: torch.dtype
) -> Tensor:
    """Vision tokens of crops: [B, C, V, D] in `dtype`, differentiable."""
    masks = layout.masks_CP.expand(len(crops_BCPX), -1, -1)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        return model.vision(crops_BCPX, masks)


def embed(
    model: MolmoE, tokens_BT: Tensor, vision_BCVD: Tensor | None, tier: TierLayout | None
) -> Tensor:
    """Token embeddings, plus the vision tokens at their positions, float32."""
    x = F.embedding(tokens_BT, model.wte.embedding)
    if vision_BCVD is None or tier is None:
        return x
    idx = tier.idx_CV.flatten()
    keep = (idx >= 0).nonzero()[:, 0]
    return x.index_add(1, idx[keep], vision_BCVD.flatten(1, 2)[:, keep].to(x.dtype))


def decode(
    model: MolmoE,
    x_BTD: Tensor,
    layout: Layout,
    *,
    top_k: int | None = None,
    skipped: Collection[int] = (),
    guides: Mapping[int, Guide] | None = None,
) -> Hidden:
    """Runs the decoder blocks; block 0 always uses the full top-k.

    `guides` are the attention targets by block.
    """
    guides = guides or {}
    balance = dominance = blindness = x_BTD.new_zeros(())
    block: Any
    for index, block in enumerate(model.blocks):
        if index in skipped:
            continue
        k = model.config.top_k if top_k is None or index == 0 else top_k
        attended, blind = attend(block.attn, x_BTD, layout, guides.get(index))
        x_BTD = x_BTD + attended
        out, logits, excess = experts(block.mlp, x_BTD, k, layout)
        x_BTD = x_BTD + out
        balance = balance + balance_loss(logits, k) / len(model.blocks)
        dominance = dominance + excess / len(model.blocks)
        blindness = blindness + blind
    return Hidden(x_BTD=x_BTD, balance=balance, dominance=dominance, blindness=blindness)


def norm(layer: RMSNorm, x: Tensor, dtype: torch.dtype) -> Tensor:
    """RMSNorm in float32, converted to the compute dtype."""
    return F.rms_norm(x.float(), layer.weight.shape, layer.weight, layer.eps).to(dtype)


def attend(
    attn: Attention, x_BTD: Tensor, layout: Layout, guide: Guide | None = None
) -> tuple[Tensor, Tensor]:
    """Self-attention by explicit products and softmax: [B, T, D], and the loss of the guide."""
    dtype = layout.bias.dtype
    x = norm(attn.attn_norm, x_BTD, dtype)
    q, k, v = F.linear(x, attn.att_proj.weight.to(dtype)).chunk(3, dim=-1)
    q, k = norm(attn.q_norm, q, dtype), norm(attn.k_norm, k, dtype)
    q, k, v = (t.unflatten(-1, (attn.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
    q, k = rotate(q, layout), rotate(k, layout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + layout.bias
    weights = scores.softmax(-1)
    out = (weights @ v).transpose(1, 2).flatten(2)
    blind = x_BTD.new_zeros(()) if guide is None else guide.blindness(weights)
    return F.linear(out, attn.attn_out.weight.to(dtype)).float(), blind


def rotate(x_BHTK: Tensor, layout: Layout) -> Tensor:
    """Rotary embedding, rotate-half."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * layout.cos + torch.cat([-second, first], dim=-1) * layout.sin


def experts(
    moe: SparseMoE, x_BTD: Tensor, top_k: int, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs all experts at once, those that are not chosen with weight 0.

    Returns:
        Output [B, T, D], router logits [N, E], and the dominance loss of the question tokens.
    """
    dtype = layout.bias.dtype
    x_ND = norm(moe.ff_norm, x_BTD, torch.float32).flatten(0, 1)
    logits_NE = F.linear(x_ND, moe.gate.weight)
    probs_NE = logits_NE.softmax(-1)
    chosen = probs_NE.detach().topk(top_k, dim=-1).indices
    weights_NE = probs_NE * torch.zeros_like(probs_NE).scatter_(-1, chosen, 1.0)
    num_experts, double, dim = moe.gate_up.shape
    gate_up, x_ND = moe.gate_up.to(dtype), x_ND.to(dtype)
    gate = F.linear(x_ND, gate_up[:, : double // 2].reshape(-1, dim))
    up = F.linear(x_ND, gate_up[:, double // 2 :].reshape(-1, dim))
    gate, up = (t.unflatten(-1, (num_experts, -1)) for t in (gate, up))
    hidden = swiglu(gate, up, weights_NE.to(dtype))
    down = moe.down.to(dtype).permute(1, 0, 2).reshape(dim, -1)
    out_ND = F.linear(hidden.flatten(1), down)
    rows = torch.arange(len(out_ND)).view(x_BTD.shape[:2])[:, layout.prefix :: DOMINANCE_STRIDE]
    rows = rows.flatten()
    share = weaker_share(hidden[rows], chosen[rows], out_ND[rows], down)
    excess = share_loss(share, layout.easy.flatten()[rows])
    return out_ND.float().view_as(x_BTD), logits_NE, excess


WEAKER_SHARE = 0.7
"""Smallest share of the energy that the weaker half of a token's experts should contribute."""

EASY_WEAKER_SHARE = 0.2
"""Largest such share in easy questions, for which half of the experts should suffice."""

DOMINANCE_STRIDE = 2
"""Stride of the tokens after the prefix on which the dominance loss is computed."""


def weaker_share(hidden_NEH: Tensor, chosen_Nk: Tensor, out_ND: Tensor, down_DF: Tensor) -> Tensor:
    """Share of the energy that the weaker half of the chosen experts contributes, [N].

    Only the component of the weaker half's output that is orthogonal to the stronger half's output
    counts. `chosen_Nk` is sorted by router probability; `down_DF` is the concatenation of the down
    projections of all experts.
    """
    weaker = chosen_Nk[:, chosen_Nk.shape[1] // 2 :]
    kept_NE = torch.zeros(hidden_NEH.shape[:2], dtype=hidden_NEH.dtype).scatter_(1, weaker, 1.0)
    late_ND = F.linear((hidden_NEH * kept_NE[..., None]).flatten(1), down_DF).float()
    early_ND = out_ND.float() - late_ND
    early = early_ND.square().sum(-1) + 1e-9
    late = late_ND.square().sum(-1) - (late_ND * early_ND).sum(-1).square() / early
    return late / (late + early)


def share_loss(share_N: Tensor, easy_N: Tensor) -> Tensor:
    """Mean distance of the weaker experts' shares from their allowed ranges.

    Without this loss the first few experts do nearly all of the work, or all do the same, so that a
    smaller top-k costs no question any accuracy; or it costs every question, even the easy ones.
    """
    lacking_N, beyond_N = WEAKER_SHARE - share_N, share_N - EASY_WEAKER_SHARE
    return F.relu(torch.where(easy_N, beyond_N, lacking_N)).mean()


def swiglu(gate_NEH: Tensor, up_NEH: Tensor, weights_NE: Tensor) -> Tensor:
    """silu(gate) * up * router weight, [N, E, H]."""
    return F.silu(gate_NEH) * up_NEH * weights_NE[..., None]


def use_fast_operations() -> None:
    """Replaces operations that are slow to train on a CPU, in this process."""
    global swiglu
    swiglu = torch.compile(swiglu, dynamic=True)
    vision.attend_float32 = explicit_attention


def balance_loss(logits_NE: Tensor, top_k: int) -> Tensor:
    """Load-balance loss of the Switch Transformer: E * sum(share of choices * mean probability)."""
    probs = logits_NE.softmax(-1)
    chosen = probs.detach().topk(top_k, dim=-1).indices
    share = torch.zeros(logits_NE.shape[1]).scatter_add_(
        0, chosen.flatten(), torch.ones(chosen.numel())
    )
    return logits_NE.shape[1] * (share / share.sum() * probs.mean(0)).sum()


def answer_logits(model: MolmoE, x_MD: Tensor, dtype: torch.dtype) -> Tensor:
    """Final norm and head at selected positions: [M, W] in float32."""
    return F.linear(norm(model.ln_f, x_MD, dtype), model.lm_head.weight.to(dtype)).float()

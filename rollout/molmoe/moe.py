"""Sparse mixture of experts: softmax over all experts, top-k kept and not renormalised.

Shapes: T tokens, D d_model, E experts, k experts a token, M = T * k rows, H expert width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollout.molmoe.attention import RMSNorm, wide
from rollout.molmoe.config import MolmoEConfig

ExpertFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def route(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Router probabilities (float32 softmax, cast back) and expert indices: [T, k] each."""
    probs = F.softmax(wide(logits_TE), dim=-1)
    weights_Tk, experts_Tk = probs.topk(top_k, dim=-1)
    return weights_Tk.to(logits_TE.dtype), experts_Tk


def grouped_experts(
    x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """One grouped matrix product over rows sorted by expert; reads nothing on the host.

    Args:
        x_TD: normed activations.
        weights_Tk: router probabilities.
        experts_Tk: expert indices.
        gate_up: fused gate and up projections, [E, 2H, D].
        down: down projections, [E, D, H].

    Returns:
        [T, D].
    """
    top_k = experts_Tk.shape[1]
    flat = experts_Tk.flatten()
    order = flat.argsort(stable=True)
    counts = torch.zeros(len(gate_up), dtype=torch.int32, device=x_TD.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    ends = counts.cumsum(0, dtype=torch.int32)
    rows = x_TD[order // top_k]
    gate, up = F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    out = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    unsorted = torch.empty_like(out).index_copy(0, order, out)
    return (unsorted.view(*experts_Tk.shape, -1) * weights_Tk[..., None]).sum(1)


def looped_experts(
    x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Matrix products of the experts actually used, one after another (for the CPU).

    The arguments are those of `grouped_experts`. Reads the expert indices on the host.
    """
    if len(x_TD) == 1:
        return _one_token(x_TD, weights_Tk, experts_Tk, gate_up, down)
    top_k = experts_Tk.shape[1]
    flat = experts_Tk.flatten()
    order = flat.argsort(stable=True)
    tokens = order // top_k
    rows, scale = x_TD[tokens], weights_Tk.flatten()[order, None]
    out = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(torch.bincount(flat, minlength=len(gate_up)).tolist()):
        if count:
            stop = start + count
            gate, up = F.linear(rows[start:stop], gate_up[expert]).chunk(2, dim=-1)
            out[start:stop] = F.linear(F.silu(gate) * up, down[expert])
            start = stop
    return torch.zeros_like(x_TD).index_add_(0, tokens, out * scale)


def _one_token(
    x_1D: Tensor, weights_1k: Tensor, experts_1k: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    weights = weights_1k[0]
    result = None
    for slot, expert in enumerate(experts_1k[0].tolist()):
        gate, up = F.linear(x_1D, gate_up[expert]).chunk(2, dim=-1)
        out = F.linear(F.silu(gate) * up, down[expert]) * weights[slot]
        result = out if result is None else result + out
    assert result is not None
    return result


class SparseMoE(nn.Module):
    """Norm, router and experts; `top_k` is an argument, so it cannot leak into another call."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        dim, hidden, experts = config.d_model, config.expert_hidden, config.num_experts
        self.ff_norm = RMSNorm(dim, config.norm_eps)
        self.gate = nn.Linear(dim, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, dim))
        self.down = nn.Parameter(torch.empty(experts, dim, hidden))

    def experts_for(self, x_TD: Tensor) -> ExpertFunction:
        """The stated rule: grouped on an accelerator, a loop over the used experts on a CPU."""
        return looped_experts if x_TD.device.type == "cpu" else grouped_experts

    def forward(self, x_BTD: Tensor, top_k: int) -> Tensor:
        """[B, T, D] -> [B, T, D], residual not added.

        Raises:
            ValueError: if `top_k` is not within 1..E.
        """
        if not 1 <= top_k <= len(self.gate_up):
            raise ValueError(f"top_k {top_k} is not within 1..{len(self.gate_up)}")
        x_TD = self.ff_norm(x_BTD).flatten(0, -2)
        weights, experts = route(self.gate(x_TD), top_k)
        out = self.experts_for(x_TD)(x_TD, weights, experts, self.gate_up, self.down)
        return out.view_as(x_BTD)

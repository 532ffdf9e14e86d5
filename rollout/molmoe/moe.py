"""Sparse mixture of experts: softmax over all experts; the top-k weights are not renormalised.

Shapes: T tokens, D d_model, E experts, k experts per token, M = T * k rows, H expert width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollout.molmoe.attention import RMSNorm, wide
from rollout.molmoe.config import MolmoEConfig

GROUPED_ROWS = {torch.float32: (32, 16), torch.bfloat16: (96, 32)}
"""Mean number of rows per expert below which a CPU uses the grouped product: first for experts of
up to SMALL_EXPERT_BYTES, then for larger ones. Other dtypes have no grouped product."""

SMALL_EXPERT_BYTES = 2**21

ExpertFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def route(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Router probabilities (float32 softmax, cast back) and expert indices: [T, k] each."""
    probs = F.softmax(wide(logits_TE), dim=-1)
    weights_Tk, experts_Tk = probs.topk(top_k, dim=-1)
    return weights_Tk.to(logits_TE.dtype), experts_Tk


def grouped_experts(
    x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """One grouped matrix product over rows sorted by expert; nothing is read on the host.

    Args:
        x_TD: normalised activations.
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
    rows, scale = x_TD[order // top_k], weights_Tk.flatten()[order, None]
    gate, up = F.grouped_mm(rows, gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    out = F.grouped_mm(F.silu(gate) * up * scale, down.transpose(1, 2), offs=ends)
    unsorted = torch.empty_like(out).index_copy_(0, order, out)
    return unsorted.view(*experts_Tk.shape, -1).sum(1)


def gathered_experts(
    x_1D: Tensor, weights_1k: Tensor, experts_1k: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """One token's experts, their weights copied side by side.

    All shapes are known beforehand and nothing is read on the host, so that a CUDA graph can hold
    it. The copy makes it slow on a CPU. The arguments are those of `grouped_experts` with T = 1.
    """
    experts_k = experts_1k[0]
    chosen = gate_up.index_select(0, experts_k)
    fused_kH = F.linear(x_1D, chosen.flatten(0, 1)).view(len(experts_k), -1)
    gate, up = fused_kH.chunk(2, dim=-1)
    hidden_kH = F.silu(gate) * up * weights_1k.view(-1, 1)
    down_kHD = down.index_select(0, experts_k).transpose(1, 2)
    return torch.bmm(hidden_kH[:, None], down_kHD).sum(0)


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
    tokens, scale = order // top_k, weights_Tk.flatten()[order, None]
    result = torch.zeros_like(x_TD)
    start = 0
    for expert, count in enumerate(torch.bincount(flat, minlength=len(gate_up)).tolist()):
        if count:
            rows = tokens[start : start + count]
            gate, up = F.linear(x_TD[rows], gate_up[expert]).chunk(2, dim=-1)
            hidden = F.silu(gate) * up * scale[start : start + count]
            result.index_add_(0, rows, F.linear(hidden, down[expert]))
            start += count
    return result


def _one_token(
    x_1D: Tensor, weights_1k: Tensor, experts_1k: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Elementwise work once for all k experts, because at one token the calls dominate the cost."""
    experts = experts_1k[0].tolist()
    gate, up = torch.cat([_row_product(x_1D, gate_up[e]) for e in experts]).chunk(2, dim=-1)
    hidden_kH = F.silu(gate) * up * weights_1k[0][:, None]
    out = [_row_product(hidden_kH[i : i + 1], down[e]) for i, e in enumerate(experts)]
    return torch.cat(out).sum(0, keepdim=True)


def _row_product(x_1I: Tensor, weight_OI: Tensor) -> Tensor:
    """`F.linear` of one row; in float32 as a batch with one block of outputs per thread.

    On some CPUs the library runs a matrix-vector product on one thread, but never a batch.
    """
    blocks = torch.get_num_threads() if x_1I.dtype == torch.float32 else 1
    if blocks == 1 or len(weight_OI) % blocks:
        return F.linear(x_1I, weight_OI)
    blocks_bIO = weight_OI.unflatten(0, (blocks, -1)).transpose(1, 2)
    return torch.bmm(x_1I.expand(blocks, 1, -1), blocks_bIO).view(1, -1)


class SparseMoE(nn.Module):
    """Norm, router and experts; `top_k` is an argument, so it cannot leak into another call."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        dim, hidden, experts = config.d_model, config.expert_hidden, config.num_experts
        self.ff_norm = RMSNorm(dim, config.norm_eps)
        self.gate = nn.Linear(dim, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, dim))
        self.down = nn.Parameter(torch.empty(experts, dim, hidden))

    def experts_for(self, x_TD: Tensor, top_k: int) -> ExpertFunction:
        """Chooses how to compute the experts; `python -m benchmarks.moe` measured the rule.

        Grouped on an accelerator. On a CPU the grouped product wins while experts get few rows
        each, and the loop over the used experts at one token and where they get many.
        """
        if x_TD.device.type != "cpu":
            return grouped_experts
        rows_of_an_expert = len(x_TD) * top_k / len(self.gate_up)
        expert_bytes = (self.gate_up[0].numel() + self.down[0].numel()) * x_TD.element_size()
        limit = GROUPED_ROWS.get(x_TD.dtype, (0, 0))[expert_bytes > SMALL_EXPERT_BYTES]
        is_grouped = len(x_TD) > 1 and rows_of_an_expert < limit
        return grouped_experts if is_grouped else looped_experts

    def forward(self, x_BTD: Tensor, top_k: int) -> Tensor:
        """[B, T, D] -> [B, T, D], residual not added.

        Raises:
            ValueError: if `top_k` is not within 1..E.
        """
        if not 1 <= top_k <= len(self.gate_up):
            raise ValueError(f"top_k {top_k} is not within 1..{len(self.gate_up)}")
        x_TD = self.ff_norm(x_BTD).flatten(0, -2)
        weights, experts = route(self.gate(x_TD), top_k)
        out = self.experts_for(x_TD, top_k)(x_TD, weights, experts, self.gate_up, self.down)
        return out.view_as(x_BTD)

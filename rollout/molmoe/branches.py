"""Many prompts at once, each through blocks and top-k of its own.

Rows of all prompts are packed one after another, so that one matrix product serves them all. Paths
that agree up to a block share what comes before it. The attention of each prompt sees its own rows
alone, and each row has its own number of experts.

Shapes: N packed rows, T rows of a prompt, B prompts of one length, U answers that continue, L
capacity in tokens, D d_model, H heads, K head width, k experts of a row, M (row, expert) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from rollout.molmoe.attention import Attention, rotate
from rollout.molmoe.decoder import Block, MolmoE
from rollout.molmoe.moe import SparseMoE, route

Path = tuple[int, ...]
"""The experts per token of every block of the model; 0 where a block is skipped."""

LOOPED_ROWS = 24
"""Mean number of rows per expert from which a CPU multiplies one expert after another, in float32.
In bfloat16 the grouped product is nearer to what a single prompt goes through."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A prompt after some blocks of a path; `parent` tells which branch it came from."""

    prompt: int
    path: Path
    parent: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What remains of a pass through all blocks.

    Attributes:
        hidden: of each path, the hidden states [T, D] after its last block.
        keys: of each path and block, keys [H, T, K] after RoPE, or None where it is skipped.
        values: the same for values.
    """

    hidden: list[Tensor]
    keys: list[list[Tensor | None]]
    values: list[list[Tensor | None]]


class Branches:
    """Runs prompts through paths that share what they have in common.

    Args:
        model: the frozen model.
    """

    def __init__(self, model: MolmoE) -> None:
        self.model = model

    def run(self, prompts: Sequence[Tensor], asked: Sequence[tuple[int, Path]]) -> Passed:
        """Runs each asked (prompt, path) through all blocks.

        Args:
            prompts: embedded prompts, [T, D] each.
            asked: number of the prompt, and path; one entry of the result for each.
        """
        num_layers, lengths = self.model.config.n_layers, [len(x) for x in prompts]
        roots = sorted({number for number, _ in asked}, key=lambda number: lengths[number])
        branches = [Branch(number, ()) for number in roots]
        x_ND = torch.cat([prompts[number] for number in roots])
        stored: list[dict[tuple[int, Path], tuple[Tensor, Tensor]]] = []
        for index in range(num_layers):
            ahead = {(number, path[: index + 1]) for number, path in asked}
            x_ND, branches, kept = self._block(index, x_ND, branches, ahead, lengths)
            stored.append(kept)
        by_branch = dict(
            zip(
                ((branch.prompt, branch.path) for branch in branches),
                x_ND.split([lengths[branch.prompt] for branch in branches]),
                strict=True,
            )
        )
        pairs = [
            [stored[i][number, path[:i]] if path[i] else (None, None) for i in range(num_layers)]
            for number, path in asked
        ]
        return Passed(
            hidden=[by_branch[one] for one in asked],
            keys=[[key for key, _ in row] for row in pairs],
            values=[[value for _, value in row] for row in pairs],
        )

    def _block(
        self,
        index: int,
        x_ND: Tensor,
        branches: Sequence[Branch],
        ahead: set[tuple[int, Path]],
        lengths: Sequence[int],
    ) -> tuple[Tensor, list[Branch], dict[tuple[int, Path], tuple[Tensor, Tensor]]]:
        """One block: attention once per branch that enters, experts once per branch and top-k."""
        block = self.model.blocks[index]
        assert isinstance(block, Block)
        places = {(branch.prompt, branch.path): i for i, branch in enumerate(branches)}
        children = sorted(
            (Branch(number, path, places[number, path[:-1]]) for number, path in ahead),
            key=lambda branch: (lengths[branch.prompt], branch.parent, branch.path[-1]),
        )
        rows = x_ND.split([lengths[branch.prompt] for branch in branches])
        entered = sorted({child.parent for child in children if child.path[-1]})
        if not entered:
            return torch.cat([rows[c.parent] for c in children]), children, {}
        inside_ND = x_ND if len(entered) == len(rows) else torch.cat([rows[i] for i in entered])
        sizes = [len(rows[i]) for i in entered]
        mixed_ND, keys, values = _attended(self.model, block.attn, inside_ND, sizes)
        attended = dict(zip(entered, (inside_ND + mixed_ND).split(sizes), strict=True))
        kept = {
            (branches[i].prompt, branches[i].path): (key, value)
            for i, key, value in zip(entered, keys, values, strict=True)
        }
        running = [child for child in children if child.path[-1]]
        h_ND = torch.cat([attended[child.parent] for child in running])
        top_ks = [(lengths[child.prompt], child.path[-1]) for child in running]
        h_ND = h_ND + mixed_experts(block.mlp, h_ND, top_ks)
        if len(running) == len(children):
            return h_ND, children, kept
        after = iter(h_ND.split([count for count, _ in top_ks]))
        parts = [next(after) if c.path[-1] else rows[c.parent] for c in children]
        return torch.cat(parts), children, kept


def _attended(
    model: MolmoE, attention: Attention, x_ND: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Causal attention of each prompt over itself: packed rows, keys and values [H, T, K] each.

    Prompts of one length are neighbours and go through together.
    """
    cos, sin = model._rotary.table(max(sizes), x_ND.device)
    q, k, v = attention.att_proj(attention.attn_norm(x_ND)).chunk(3, dim=-1)
    q, k = attention.q_norm(q), attention.k_norm(k)
    out_ND, keys, values, start = torch.empty_like(v), [], [], 0
    for size, group in groupby(sizes):
        count = len(list(group))
        end = start + count * size
        q_BHTK, k_BHTK, v_BHTK = (
            t[start:end].view(count, size, attention.n_heads, -1).transpose(1, 2) for t in (q, k, v)
        )
        q_BHTK, k_BHTK = (rotate(t, cos[:size], sin[:size]) for t in (q_BHTK, k_BHTK))
        out = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=size > 1)
        out_ND[start:end] = out.transpose(1, 2).reshape(count * size, -1)
        keys += k_BHTK.unbind()
        values += v_BHTK.unbind()
        start = end
    return attention.attn_out(out_ND), keys, values


def mixed_experts(mlp: SparseMoE, x_ND: Tensor, top_ks: Sequence[tuple[int, int]]) -> Tensor:
    """`SparseMoE.forward` where rows have different numbers of experts, residual not added.

    Args:
        mlp: the layer.
        x_ND: activations.
        top_ks: number of rows and their top-k, for each run of rows.
    """
    most = max(top_k for _, top_k in top_ks)
    normed_ND = mlp.ff_norm(x_ND)
    weights_Nk, experts_Nk = route(mlp.gate(normed_ND), most)
    pairs_M = _pairs(top_ks, most).to(x_ND.device)
    experts_M = experts_Nk.flatten()[pairs_M]
    order_M = experts_M.argsort(stable=True)
    pairs_M, experts_M = pairs_M[order_M], experts_M[order_M]
    scale_M1 = weights_Nk.flatten()[pairs_M, None]
    has_many_rows = len(pairs_M) >= LOOPED_ROWS * len(mlp.gate_up)
    if x_ND.device.type == "cpu" and x_ND.dtype == torch.float32 and has_many_rows:
        return _looped(normed_ND, pairs_M // most, scale_M1, experts_M, mlp)
    out_MD = _grouped(normed_ND[pairs_M // most], scale_M1, experts_M, mlp)
    # Added up in the order of the router's ranks: the same sum on every run and device.
    by_rank_ND = x_ND.new_zeros(len(x_ND) * most, x_ND.shape[1])
    return by_rank_ND.index_copy_(0, pairs_M, out_MD).view(len(x_ND), most, -1).sum(1)


def _pairs(top_ks: Sequence[tuple[int, int]], most: int) -> Tensor:
    """Flat places [M] in [N, most] of the experts that count; known on the host."""
    parts, start = [], 0
    for count, top_k in top_ks:
        rows = torch.arange(start, start + count)[:, None] * most
        parts.append((rows + torch.arange(top_k)).flatten())
        start += count
    return torch.cat(parts)


def _grouped(x_MD: Tensor, scale_M1: Tensor, experts_M: Tensor, mlp: SparseMoE) -> Tensor:
    """One grouped matrix product over pairs that are sorted by expert."""
    counts = torch.zeros(len(mlp.gate_up), dtype=torch.int32, device=x_MD.device)
    counts.scatter_add_(0, experts_M, torch.ones_like(experts_M, dtype=torch.int32))
    ends = counts.cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(x_MD, mlp.gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    return F.grouped_mm(F.silu(gate) * up * scale_M1, mlp.down.transpose(1, 2), offs=ends)


def _looped(
    x_ND: Tensor, rows_M: Tensor, scale_M1: Tensor, experts_M: Tensor, mlp: SparseMoE
) -> Tensor:
    """Matrix products of the experts that are used, one after another."""
    counts = torch.bincount(experts_M, minlength=len(mlp.gate_up)).tolist()
    result = torch.zeros_like(x_ND)
    runs = zip(rows_M.split(counts), scale_M1.split(counts), strict=True)
    for expert, (rows, scale) in enumerate(runs):
        gate, up = F.linear(x_ND[rows], mlp.gate_up[expert]).chunk(2, dim=-1)
        result.index_add_(0, rows, F.linear(F.silu(gate) * up * scale, mlp.down[expert]))
    return result

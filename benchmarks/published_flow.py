"""The published code's way of running the decoder, written for comparison on the same weights.

It concatenates both embedding tables in every forward pass, loops over all experts, concatenates
keys and values into a new cache, and applies the head to every position.

Shapes: T tokens, D d_model.
"""

from typing import cast

import torch
import torch.nn.functional as F

from rollout.molmoe import MolmoE
from rollout.molmoe.decoder import Block
from rollout.molmoe.moe import SparseMoE

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


def blocks_of(model: MolmoE) -> list[Block]:
    """The blocks with their type, which `ModuleList` does not know."""
    return [cast(Block, block) for block in model.blocks]


class PlainLoop(torch.nn.Module):
    """The published MoE layer: a loop over all experts with masks and separate weights."""

    def __init__(self, ours: SparseMoE) -> None:
        super().__init__()
        half = ours.gate_up.shape[1] // 2
        self.gate = ours.gate
        self.experts = [
            (fused[:half].contiguous(), fused[half:].contiguous(), down.contiguous())
            for fused, down in zip(ours.gate_up, ours.down, strict=True)
        ]

    def forward(self, x_TD: torch.Tensor, top_k: int) -> torch.Tensor:
        """The weighted sum of the k chosen experts, [T, D]."""
        probs = F.softmax(self.gate(x_TD), dim=1, dtype=torch.float)
        weights, selected = torch.topk(probs, top_k, dim=-1)
        weights = weights.to(x_TD.dtype)
        mask = F.one_hot(selected, num_classes=len(self.experts)).permute(2, 1, 0)
        out = torch.zeros_like(x_TD)
        for index, (gate, up, down) in enumerate(self.experts):
            slot, token = torch.where(mask[index])
            rows = x_TD[token]
            hidden = F.silu(F.linear(rows, gate)) * F.linear(rows, up)
            out.index_add_(0, token, F.linear(hidden, down) * weights[token, slot, None])
        return out


class PublishedFlow:
    """Forward passes as in the published code.

    Args:
        model: our model, whose weights it shares.
        past: keys and values of each block; by default there are none yet.
    """

    def __init__(self, model: MolmoE, past: list[KeysAndValues] | None = None) -> None:
        self.model, self.past = model, past or []
        self.loops = [PlainLoop(block.mlp) for block in blocks_of(model)]

    def embed(self, ids_1T: torch.Tensor) -> torch.Tensor:
        """Embeddings [1, T, D] from both tables."""
        tables = torch.cat([self.model.wte.embedding, self.model.wte.new_embedding])
        return F.embedding(ids_1T, tables)

    def step(self, ids_1T: torch.Tensor) -> torch.Tensor:
        """Feeds tokens after those of the cache; the most likely next one of each position."""
        x, config = self.embed(ids_1T), self.model.config
        past_length = self.past[0][0].shape[2] if self.past else 0
        total = past_length + ids_1T.shape[1]
        cos, sin = self.model._rotary.table(total, self.model.device)
        cos, sin = cos[past_length:total], sin[past_length:total]
        past, self.past = self.past, []
        for index, (block, loop) in enumerate(zip(blocks_of(self.model), self.loops, strict=True)):
            attention = block.attn
            q, k, v = attention.att_proj(attention.attn_norm(x)).chunk(3, -1)
            q, k = attention.q_norm(q), attention.k_norm(k)
            q, k, v = (t.unflatten(-1, (config.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
            q, k = (_turn(t.float(), cos, sin).to(x.dtype) for t in (q, k))
            if past:
                k, v = torch.cat([past[index][0], k], 2), torch.cat([past[index][1], v], 2)
            self.past.append((k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=not past)
            x = x + attention.attn_out(out.transpose(1, 2).flatten(2))
            x = x + loop(block.mlp.ff_norm(x)[0], config.top_k)[None]
        return self.model.logits(x).argmax(-1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin

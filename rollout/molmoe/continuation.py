"""Greedy answers of many prompts at once, each through blocks and top-k of its own.

Shapes: U answers that continue, R of them in one block, L capacity in tokens, D d_model, H heads,
K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rollout.molmoe.attention import rotate
from rollout.molmoe.branches import Path, mixed_experts
from rollout.molmoe.decoder import Block, MolmoE

ROOM = 8
"""Number of tokens by which caches grow; answers tend to be short, and zeros cost time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """An answer that goes on after its prompt and first token.

    Attributes:
        path: the experts per token of every block; 0 where it is skipped.
        token_id: the token that enters next.
        max_new_tokens: number of tokens that may still follow it.
        keys: of each block, the prompt's keys [H, T, K] after RoPE; None where it is skipped.
        values: the same for values.
    """

    path: Path
    token_id: int
    max_new_tokens: int
    keys: Sequence[Tensor | None]
    values: Sequence[Tensor | None]

    @property
    def num_past(self) -> int:
        """Number of tokens before the one that enters next."""
        return next(key.shape[1] for key in self.keys if key is not None)


class _BlockRows:
    """The answers that run in one block, with room for their keys and values."""

    def __init__(self, answers: Sequence[Unfinished], index: int, capacity: int) -> None:
        # Rows of equal top-k are neighbours, because experts are mixed for runs of rows.
        rows = [row for row, answer in enumerate(answers) if answer.path[index]]
        self.rows = sorted(rows, key=lambda row: answers[row].path[index])
        self.top_ks = [(1, answers[row].path[index]) for row in self.rows]
        if not self.rows:
            return
        keys = [_present(answers[row].keys[index]) for row in self.rows]
        values = [_present(answers[row].values[index]) for row in self.rows]
        self.rows_R = torch.tensor(self.rows, device=keys[0].device)
        self.places_R = torch.arange(len(rows), device=keys[0].device)
        self.keys, self.values = _padded(keys, capacity), _padded(values, capacity)

    def widen(self, capacity: int) -> None:
        """Makes room for more tokens."""
        if self.rows:
            more = capacity - self.keys.shape[2]
            self.keys, self.values = (F.pad(t, (0, 0, 0, more)) for t in (self.keys, self.values))


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "the block ran"
    return tensor


def _padded(tensors: Sequence[Tensor], capacity: int) -> Tensor:
    """Keys or values [H, T, K] of several prompts as one tensor [R, H, L, K].

    It has zeros behind each prompt, because a masked value that is not finite would still spoil
    the sum.
    """
    first = tensors[0]
    result = first.new_empty(len(tensors), len(first), capacity, first.shape[-1])
    for place, tensor in enumerate(tensors):
        result[place, :, : tensor.shape[1]] = tensor
        result[place, :, tensor.shape[1] :] = 0
    return result


@torch.no_grad()
def continued(model: MolmoE, answers: Sequence[Unfinished]) -> list[list[int]]:
    """Greedy tokens of each answer after `token_id`, with the end-of-sequence token if reached.

    There is one host read per step, for all answers.
    """
    results: list[list[int]] = [[] for _ in answers]
    left = [answer.max_new_tokens for answer in answers]
    if not answers or not max(left):
        return results
    device, eos = model.device, model.config.eos_token_id
    capacity = max(answer.num_past for answer in answers) + ROOM
    blocks = [_BlockRows(answers, index, capacity) for index in range(model.config.n_layers)]
    token_U = torch.tensor([answer.token_id for answer in answers], device=device)
    position_U = torch.tensor([answer.num_past for answer in answers], device=device)
    highest = max(answer.num_past for answer in answers)
    going = set(range(len(answers)))
    while going:
        if highest == capacity:
            capacity += ROOM
            for rows in blocks:
                rows.widen(capacity)
        token_U = _step(model, blocks, token_U, position_U, capacity)
        for row, token_id in enumerate(token_U.cpu().tolist()):
            if row in going:
                results[row].append(token_id)
                if token_id == eos or len(results[row]) == left[row]:
                    going.remove(row)
        position_U += 1
        highest += 1
    return results


def _step(
    model: MolmoE,
    blocks: Sequence[_BlockRows],
    token_U: Tensor,
    position_U: Tensor,
    capacity: int,
) -> Tensor:
    x_UD = model.wte(token_U)
    cos, sin = (table[position_U] for table in model._rotary.table(capacity, model.device))
    mask_UL = torch.arange(capacity, device=model.device) <= position_U[:, None]
    for block, rows in zip(model.blocks, blocks, strict=True):
        if not rows.rows:
            continue
        assert isinstance(block, Block)
        chosen_R = rows.rows_R
        x_RD = x_UD[chosen_R]
        angles = cos[chosen_R, None], sin[chosen_R, None]
        x_RD = x_RD + _attended(block, x_RD, rows, position_U[chosen_R], mask_UL[chosen_R], angles)
        x_RD = x_RD + mixed_experts(block.mlp, x_RD, rows.top_ks)
        x_UD = x_UD.index_copy(0, chosen_R, x_RD)
    return model.logits(x_UD).argmax(-1)


def _attended(
    block: Block,
    x_RD: Tensor,
    rows: _BlockRows,
    position_R: Tensor,
    mask_RL: Tensor,
    angles: tuple[Tensor, Tensor],
) -> Tensor:
    attention = block.attn
    q, k, v = attention.att_proj(attention.attn_norm(x_RD)).chunk(3, dim=-1)
    q, k = attention.q_norm(q), attention.k_norm(k)
    q, k, v = (t.unflatten(-1, (attention.n_heads, -1)) for t in (q, k, v))
    q, k = rotate(q, *angles), rotate(k, *angles)
    rows.keys[rows.places_R, :, position_R] = k
    rows.values[rows.places_R, :, position_R] = v
    out_RH1K = F.scaled_dot_product_attention(
        q[:, :, None], rows.keys, rows.values, mask_RL[:, None, None]
    )
    return attention.attn_out(out_RH1K.flatten(1))

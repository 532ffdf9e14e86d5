"""Decodes one token at a time in parts whose shapes and memory never change.

A step is the part `embed`, one part for each block that runs, with its top-k, and the part `head`.
What differs between steps lies on the device: the token, its position, and the mask made of it. So
each part can be captured in a CUDA graph once, and every position, top-k and choice of blocks is a
sequence of the same parts. Keys and values live in a cache of fixed capacity; attention reads all
of it and the mask hides what is not valid.

Shapes: D d_model, H heads, K head width, L capacity in tokens, k experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rollout.molmoe.attention import Attention
from rollout.molmoe.cache import KVCache
from rollout.molmoe.config import MolmoEConfig
from rollout.molmoe.decoder import MolmoE
from rollout.molmoe.moe import SparseMoE, gathered_experts

EMBED, HEAD = "embed", "head"

Part = str | tuple[int, int]
"""EMBED, HEAD, or the block and the top-k of a part in between."""

CAPACITY_MULTIPLE = 64
"""Attention kernels want the mask's rows aligned."""

TEXT_TOKENS = 512
"""Room for the text of a prompt, next to the largest image."""


class Launcher(Protocol):
    """Prepares the parts of a step once and runs them by name."""

    @property
    def runtime(self) -> str:
        """Name of the runtime whose latencies these are."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory on the device that the prepared parts take."""
        ...

    def prepare(self, parts: Mapping[Part, Callable[[], None]]) -> None:
        """Takes the parts; each may be run several times for that."""
        ...

    def run(self, part: Part) -> None:
        """Launches a part; does not wait for it."""
        ...

    def send(self, token_id_1: Tensor) -> Callable[[], int]:
        """Starts to copy a token id to the host; the result waits for the copy and returns it."""
        ...


class PlainCalls:
    """Runs parts by calling them: for devices without CUDA graphs, and to compare with."""

    runtime = "fixed_shape"
    num_bytes = 0

    def prepare(self, parts: Mapping[Part, Callable[[], None]]) -> None:
        """Keeps the parts."""
        self._parts = dict(parts)

    def run(self, part: Part) -> None:
        """Calls a part."""
        self._parts[part]()

    def send(self, token_id_1: Tensor) -> Callable[[], int]:
        """The copy that the next step does not overwrite."""
        copy_1 = token_id_1.clone()
        return lambda: int(copy_1)


def capacity_for(config: MolmoEConfig, max_new_tokens: int, max_crops: int | None = None) -> int:
    """Tokens of prompt and answer that decoding with a fixed shape has room for.

    It is the largest image of `max_crops` crops (by default the model's), TEXT_TOKENS and the
    answer, or all positions of the model if these are fewer.
    """
    side, dropped = config.pooled_grid, sum(margin // 2 for margin in config.overlap_margins)
    stride = side - dropped
    most = config.max_crops if max_crops is None else max_crops
    tilings = [(r, most // r) for r in range(1, most + 1)]
    largest = max((stride * r + dropped) * (stride * c + dropped + 1) for r, c in tilings)
    framed = 1 + (side * (side + 1) + 2) + (largest + 2)  # BOS, and the ends of both parts
    return min(framed + TEXT_TOKENS + max_new_tokens, config.max_position_embeddings)


class FixedShapeDecoder:
    """Buffers and parts of decode steps; one answer at a time.

    Args:
        model: the frozen model; it must stay where it is.
        top_ks: the top-k that every block is prepared for.
        max_tokens: largest number of tokens of prompt and answer.
        launcher: prepares and runs the parts.
    """

    def __init__(
        self, model: MolmoE, top_ks: Sequence[int], max_tokens: int, launcher: Launcher
    ) -> None:
        config, device, dtype = model.config, model.device, model.dtype
        self.model, self.launcher, self.max_tokens = model, launcher, max_tokens
        capacity = -(-max_tokens // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        self._shape = (1, config.n_heads, capacity, config.head_dim)
        self._memory = {
            index: (
                # Zeros, because a masked value that is not finite would still spoil the sum.
                torch.zeros(self._shape, dtype=dtype, device=device),
                torch.zeros(self._shape, dtype=dtype, device=device),
            )
            for index in range(config.n_layers)
        }
        self.token_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.position_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.x_1D = torch.zeros(1, config.d_model, dtype=dtype, device=device)
        self._places_L = torch.arange(capacity, device=device)
        self._mask_111L = torch.zeros(1, 1, 1, capacity, dtype=dtype, device=device)
        self._angles_P2K = self._signed_angles(max_tokens)
        self._angles_12K = torch.zeros_like(self._angles_P2K[:1])
        self._gains_2D = [
            torch.stack([block.attn.q_norm.weight, block.attn.k_norm.weight])
            for block in self._blocks
        ]
        with torch.no_grad():
            launcher.prepare(self.parts(top_ks))
            for buffer in (self.position_1, self.x_1D, *self._keys_and_values()):
                buffer.zero_()

    @property
    def _blocks(self) -> list:
        return list(self.model.blocks)

    def _signed_angles(self, count: int) -> Tensor:
        """Cosines, and sines whose first half is negated: [P, 2, K] of positions 0 .. P - 1.

        With them `x * cos + x rolled by half * sin` is the rotation.
        """
        cos, sin = (table[:count] for table in self.model._rotary.table(count, self.model.device))
        first, second = sin.chunk(2, dim=-1)
        return torch.stack([cos, torch.cat([-first, second], dim=-1)], dim=1)

    def _keys_and_values(self) -> list[Tensor]:
        return [tensor for pair in self._memory.values() for tensor in pair]

    def buffers(self) -> list[Tensor]:
        """All tensors that outlive a step; they are never allocated again."""
        own = (self.token_1, self.position_1, self.x_1D, self._places_L, self._mask_111L)
        angles = (self._angles_P2K, self._angles_12K)
        return [*own, *angles, *self._gains_2D, *self._keys_and_values()]

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers, without what the launcher takes."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def parts(self, top_ks: Sequence[int]) -> dict[Part, Callable[[], None]]:
        """The work of every part, by its name."""
        blocks = {
            (index, top_k): self._block_part(index, top_k)
            for index in range(self.model.config.n_layers)
            for top_k in top_ks
        }
        return {EMBED: self._embed, **blocks, HEAD: self._head}

    def fork(self, source: KVCache, length: int, blocks: Iterable[int]) -> KVCache:
        """`KVCache.fork` into the fixed memory; what was there before is lost.

        The rest of a prefill that runs with the fork writes its keys and values where decode steps
        read them.
        """
        child = KVCache(self._shape, source.dtype, source.device, self._memory)
        source.copy_to(child, length, blocks)
        return child

    @torch.no_grad()
    def start(self, first_id_1: Tensor, num_prompt_tokens: int) -> None:
        """Sets the token that enters the next step, and its position."""
        self.token_1.copy_(first_id_1)
        self.position_1.fill_(num_prompt_tokens)

    def step(self, running: Sequence[tuple[int, int]]) -> None:
        """Launches a step through blocks with their top-k; `token_1` becomes the next token."""
        run = self.launcher.run
        run(EMBED)
        for part in running:
            run(part)
        run(HEAD)

    def _embed(self) -> None:
        self.x_1D.copy_(self.model.wte(self.token_1))
        self._angles_12K.copy_(self._angles_P2K.index_select(0, self.position_1))
        self._mask_111L.zero_().masked_fill_(self._places_L > self.position_1, float("-inf"))

    def _block_part(self, index: int, top_k: int) -> Callable[[], None]:
        block = self._blocks[index]

        def work() -> None:
            self.x_1D.add_(self._attend(block.attn, index))
            self.x_1D.add_(_mix(block.mlp, self.x_1D, top_k))

        return work

    def _attend(self, attention: Attention, index: int) -> Tensor:
        """`Attention.forward` for one token, with fewer and larger operations."""
        (keys, values), heads = self._memory[index], attention.n_heads
        normed_1D = _normed(self.x_1D, attention.attn_norm.eps) * attention.attn_norm.weight
        qkv_3D = attention.att_proj(normed_1D).view(3, -1)
        qk_2D = _normed(qkv_3D[:2], attention.q_norm.eps) * self._gains_2D[index]
        qk_2HK = qk_2D.view(2, heads, -1)
        cos_1K, sin_1K = self._angles_12K[0, :1], self._angles_12K[0, 1:]
        turned = qk_2HK.roll(qk_2HK.shape[-1] // 2, dims=-1)
        q_HK, k_HK = (qk_2HK * cos_1K + turned * sin_1K).to(qkv_3D.dtype)
        keys.index_copy_(2, self.position_1, k_HK[None, :, None])
        values.index_copy_(2, self.position_1, qkv_3D[2].view(1, heads, 1, -1))
        out = F.scaled_dot_product_attention(q_HK[None, :, None], keys, values, self._mask_111L)
        return attention.attn_out(out.reshape(1, -1))

    def _head(self) -> None:
        norm = self.model.ln_f
        logits_1W = self.model.lm_head(_normed(self.x_1D, norm.eps) * norm.weight)
        self.token_1.copy_(logits_1W.argmax(-1))
        self.position_1.add_(1)


def _normed(x: Tensor, eps: float) -> Tensor:
    """The norm without its weight; float32 inside, regardless of the dtype."""
    return F.rms_norm(x, x.shape[-1:], None, eps)


def _mix(mlp: SparseMoE, x_1D: Tensor, top_k: int) -> Tensor:
    """`SparseMoE.forward` for one token, with fewer operations."""
    normed_1D = _normed(x_1D, mlp.ff_norm.eps) * mlp.ff_norm.weight
    logits_1E = mlp.gate(normed_1D)
    wide = torch.promote_types(logits_1E.dtype, torch.float32)
    weights, experts = F.softmax(logits_1E, dim=-1, dtype=wide).topk(top_k, sorted=False)
    weights = weights.to(x_1D.dtype)
    return gathered_experts(normed_1D, weights, experts, mlp.gate_up, mlp.down)

"""Keys and values of the blocks that ran, pre-allocated.

Shapes: B batch, H heads, T tokens, L capacity, K head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class BlockCache:
    """Keys (after RoPE) and values of one block, [B, H, L, K] each, of which `length` are valid."""

    __slots__ = ("keys", "length", "values")

    def __init__(self, keys_BHLK: Tensor, values_BHLK: Tensor, length: int = 0) -> None:
        self.keys = keys_BHLK
        self.values = values_BHLK
        self.length = length

    def append(self, keys_BHTK: Tensor, values_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Stores T tokens and returns all valid keys and values; raises ValueError when full."""
        end = self.length + keys_BHTK.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(
                f"KV cache of {self.keys.shape[2]} tokens cannot take token {end}: "
                "ask for a larger capacity"
            )
        self.keys[:, :, self.length : end] = keys_BHTK
        self.values[:, :, self.length : end] = values_BHTK
        self.length = end
        return self.valid()

    def valid(self) -> tuple[Tensor, Tensor]:
        """Views of the valid keys and values: [B, H, length, K] each."""
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KVCache:
    """One BlockCache per block that runs; a skipped block never gets one.

    Args:
        shape_BHLK: of the keys of a block.
        dtype: dtype of keys and values.
        device: device of keys and values.
        memory: keys and values by block, [B, H, L, K] each, to be filled from the first token on;
            by default each block gets memory of its own.
    """

    def __init__(
        self,
        shape_BHLK: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        memory: Mapping[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.shape = shape_BHLK
        self.dtype = dtype
        self.device = device
        self._memory = memory
        self._blocks: dict[int, BlockCache] = {}

    def block(self, index: int) -> BlockCache:
        """The cache of a block, allocated on first use."""
        if index not in self._blocks:
            if self._memory is None:
                keys = torch.empty(self.shape, dtype=self.dtype, device=self.device)
                self._blocks[index] = BlockCache(keys, torch.empty_like(keys))
            else:
                self._blocks[index] = BlockCache(*self._memory[index])
        return self._blocks[index]

    @property
    def blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that hold entries, ascending."""
        return tuple(sorted(self._blocks))

    def length(self, index: int) -> int:
        """Number of valid tokens of a block; 0 if it never ran."""
        return self._blocks[index].length if index in self._blocks else 0

    @property
    def num_bytes(self) -> int:
        """Memory of the allocated blocks in bytes, including unused capacity."""
        return sum(b.keys.nbytes + b.values.nbytes for b in self._blocks.values())

    def truncate(self, length: int) -> None:
        """Drops all tokens from `length` on; raises ValueError for a negative length."""
        if length < 0:
            raise ValueError(f"cannot truncate a KV cache to {length} tokens")
        for block in self._blocks.values():
            block.length = min(block.length, length)

    def fork(self, length: int, blocks: Iterable[int] | None = None) -> KVCache:
        """A cache that starts with the first `length` tokens of this one and grows on its own.

        Args:
            length: tokens to share; every forked block must hold at least as many.
            blocks: indices to carry over; all by default.

        Raises:
            ValueError: a block holds fewer tokens than `length`.
        """
        child = KVCache(self.shape, self.dtype, self.device)
        self.copy_to(child, length, self.blocks if blocks is None else blocks)
        return child

    def copy_to(self, target: KVCache, length: int, blocks: Iterable[int]) -> None:
        """Copies the first `length` tokens of some blocks; `fork` says what is refused."""
        for index in blocks:
            source = self._blocks.get(index)
            if source is None or source.length < length:
                held = 0 if source is None else source.length
                raise ValueError(f"cannot fork block {index} at {length}: it holds {held} tokens")
            copy = target.block(index)
            copy.keys[:, :, :length] = source.keys[:, :, :length]
            copy.values[:, :, :length] = source.values[:, :, :length]
            copy.length = length

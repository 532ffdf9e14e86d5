"""A prompt in progress: its image's global crop, then the blocks before the insertion position.

Shapes: T prompt tokens, S rows of the prefill (T, and one more with a budget token), D d_model,
P patches of a crop, F features of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from envs.spec import Stages
from rollout.block_skipping import BlockImportance
from rollout.molmoe import ModelInputs
from rollout.molmoe.cache import KVCache


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalCrop:
    """A sample's global crop, encoded; it is the same at every tier.

    Attributes:
        features_11PF: the crop as the vision encoder sees it; None for text alone.
        host_ms: time for decoding and resizing, ms.
        stages: measured time by stage.
    """

    features_11PF: Tensor | None
    host_ms: float
    stages: Stages

    @property
    def num_bytes(self) -> int:
        """Memory of the features on the device, in bytes."""
        return 0 if self.features_11PF is None else self.features_11PF.nbytes


@dataclass(slots=True, kw_only=True)
class Prefix:
    """The prompt at one tier, run through as many blocks as any member of the group needs.

    Attributes:
        inputs: the preprocessed prompt, without its pixels.
        host_ms: time for tokenising and image resizing, ms.
        importance: block importance for the sample's task.
        cache: keys and values of the text in blocks 0 .. depth - 1.
        depth: number of blocks that the prompt has passed.
        hidden: the text's hidden states [1, T, D] by number of blocks.
        latency_tokens: the budget token's hidden state [D] by number of blocks, in the model's
            dtype, 0 being the token that enters block 0; empty if the prompt runs without one.
        stages: measured time by stage.
    """

    inputs: ModelInputs
    host_ms: float
    importance: BlockImportance
    cache: KVCache
    hidden: dict[int, Tensor]
    depth: int = 0
    latency_tokens: dict[int, Tensor] = field(default_factory=dict)
    stages: Stages = field(default_factory=dict)

    @property
    def has_budget_token(self) -> bool:
        """Whether a budget token runs along as the last row."""
        return bool(self.latency_tokens)

    def rows(self) -> Tensor:
        """What enters the next block, [1, S, D]: the text, then the budget token if it has one."""
        text_1TD = self.hidden[self.depth]
        if not self.has_budget_token:
            return text_1TD
        return torch.cat([text_1TD, self.latency_tokens[self.depth][None, None]], dim=1)

    def keep(self, rows_1SD: Tensor, depth: int) -> None:
        """Takes the rows as they are after `depth` blocks; of the cache, only the text's part."""
        num_tokens = len(self.inputs.token_ids)
        self.hidden[depth] = rows_1SD[:, :num_tokens]
        if self.has_budget_token:
            # A copy, because a view would keep the text's hidden states in memory after `trim`.
            self.latency_tokens[depth] = rows_1SD[0, num_tokens].clone()
            self.cache.truncate(num_tokens)
        self.depth = depth

    @property
    def num_bytes(self) -> int:
        """Memory of the prefix on the device, in bytes."""
        tensors = (*self.hidden.values(), *self.latency_tokens.values())
        return self.cache.num_bytes + self.inputs.num_bytes + sum(t.nbytes for t in tensors)

    def restarted(self, cache: KVCache) -> Prefix:
        """The embedded prompt before its first block, with an empty cache and no budget token."""
        return replace(
            self,
            cache=cache,
            depth=0,
            hidden={0: self.hidden[0]},
            latency_tokens={},
            stages=self.stages_until(0),
        )

    def trim(self) -> None:
        """Drops what the vector-Jacobian product does not need; that reads the cache alone."""
        self.hidden.clear()

    def stages_until(self, position: int) -> Stages:
        """The stages of an episode that leaves the prefix at `position`."""
        stages: Stages = {}
        for name, elapsed in self.stages.items():
            kind, _, block = name.rpartition("_")
            if kind != "block" or int(block) < position:
                stages[name] = elapsed
        return stages

"""A prompt on its way through the blocks before the insertion position.

Shapes: T prompt tokens, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rollout.block_skipping import BlockImportance
from rollout.latency.hooks import Elapsed, Stages
from rollout.molmoe import ModelInputs
from rollout.molmoe.cache import KVCache


@dataclass(slots=True, kw_only=True)
class Prefix:
    """The prompt at one tier, run through as many blocks as any member of the group needs.

    Attributes:
        inputs: the preprocessed prompt.
        host_ms: time for tokenising and image resizing, ms.
        importance: block importance for the sample's task.
        cache: keys and values of the text in blocks 0 .. depth - 1.
        depth: number of blocks that the text has passed.
        hidden: the text's hidden states [1, T, D] by number of blocks.
        budget_token: the budget token after `depth` blocks, [1, 1, D]; None if the prompt runs
            without one.
        latency_tokens: the budget token's hidden state [D] by number of blocks, in the model's
            dtype; records hold it as float32.
        stages: measured time by stage; `budget_NN` is the budget token in block NN.
    """

    inputs: ModelInputs
    host_ms: float
    importance: BlockImportance
    cache: KVCache
    hidden: dict[int, Tensor]
    budget_token: Tensor | None
    depth: int = 0
    latency_tokens: dict[int, Tensor] = field(default_factory=dict)
    stages: Stages = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory of the prefix on the device, in bytes."""
        tensors = (*self.hidden.values(), *self.latency_tokens.values())
        return self.cache.num_bytes + self.inputs.num_bytes + sum(t.nbytes for t in tensors)

    def trim(self) -> None:
        """Drops what the vector-Jacobian product does not need; that reads the cache alone."""
        self.inputs = self.inputs.without_image()
        self.hidden.clear()

    def stages_until(self, position: int) -> Stages:
        """The stages of an episode that leaves the prefix at `position`."""
        stages: Stages = {}
        for name, elapsed in self.stages.items():
            kind, _, block = name.rpartition("_")
            if kind == "block" and int(block) < position:
                stages[name] = elapsed
            elif kind == "budget" and int(block) < position:
                stages["budget_token"] = stages.get("budget_token", Elapsed()) + elapsed
            elif kind not in ("block", "budget"):
                stages[name] = elapsed
        return stages

"""A prompt in progress: its image's global crop, then the blocks before the insertion position.

Shapes: T prompt tokens, D d_model, P patches of a crop, F features of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from envs.spec import Elapsed, Stages
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

    def restarted(self, cache: KVCache) -> Prefix:
        """The embedded prompt before its first block, with an empty cache and no budget token."""
        kinds = {name: name.rpartition("_")[0] for name in self.stages}
        return replace(
            self,
            cache=cache,
            depth=0,
            hidden={0: self.hidden[0]},
            budget_token=None,
            latency_tokens={},
            stages={n: e for n, e in self.stages.items() if kinds[n] not in ("block", "budget")},
        )

    def trim(self) -> None:
        """Drops what the vector-Jacobian product does not need; that reads the cache alone."""
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

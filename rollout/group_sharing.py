"""G episodes of one sample that share the work they have in common.

The image's global crop is encoded once. The other crops and the blocks before the insertion
position run once per distinct tier (members leave at their own positions), the rest once per
distinct configuration. Sharing saves time and changes nothing else: the same tensors go through the
same modules.

Shapes: G members, D d_model, I length of the image feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.spec import CHEAPEST_KNOBS, Decoding, Execution, Features, Knobs, Sample, Stages, Tier
from rollout.executor import MolmoEExecutor
from rollout.prefix import GlobalCrop, Prefix


class MolmoEGroupSession:
    """G episodes in flight; implements `envs.spec.GroupSession`.

    Args:
        executor: the frozen model.
        sample: the question.
        sees_image: whether `features` looks at the image.
        decoding: how answers are decoded.
    """

    def __init__(
        self,
        executor: MolmoEExecutor,
        sample: Sample,
        *,
        sees_image: bool = True,
        decoding: Decoding | None = None,
    ) -> None:
        self.executor, self.sample, self.sees_image = executor, sample, sees_image
        self.decoding = decoding or Decoding()
        self.seen: GlobalCrop | None = None
        self.budget_token_D: np.ndarray | None = None
        self.prefixes: dict[Tier, Prefix] = {}
        self.stage1: list[tuple[Tier, int]] = []

    @property
    def num_bytes(self) -> int:
        """Memory of the global crop and the prefixes on the device, in bytes."""
        seen = 0 if self.seen is None else self.seen.num_bytes
        return seen + sum(prefix.num_bytes for prefix in self.prefixes.values())

    def trim(self) -> None:
        """Drops all that `budget_gradient` does not need; `finish` is impossible afterwards."""
        self.seen = None
        for prefix in self.prefixes.values():
            prefix.trim()

    def features(self) -> tuple[Features, Stages]:
        """What stage 1 sees, and the stages `image_feature` and `language_feature`.

        The time of the vision encoder counts as a stage of every member's execution.

        Raises:
            DataError: image or prompt is unusable; names the sample.
        """
        return self.executor.features(self.sample, self._look() if self.sees_image else None)

    def _look(self) -> GlobalCrop:
        if self.seen is None:
            self.seen = self.executor.look(self.sample)
        return self.seen

    def begin(
        self, choices: Sequence[tuple[Tier, int]], budget_token_D: np.ndarray | None
    ) -> np.ndarray:
        """Runs every member to its insertion position.

        Args:
            choices: tier and insertion position of each member.
            budget_token_D: the budget token, which enters block 0 after the text. None runs
                without it and without its cost, for fixed configurations that need no controller.

        Returns:
            Latency tokens, float32 [G, D]; [G, 0] without a budget token.
        """
        self.stage1 = [(Tier.parse(tier), int(position)) for tier, position in choices]
        self.budget_token_D = budget_token_D
        for tier, position in sorted(set(self.stage1)):
            if tier not in self.prefixes:
                seen = self._look()
                limit = self.decoding.max_new_tokens
                self.prefixes[tier] = self.executor.begin(
                    self.sample, tier, budget_token_D, seen, limit
                )
            self.executor.deepen(self.prefixes[tier], position)
        if budget_token_D is None:
            return np.zeros((len(self.stage1), 0), np.float32)
        return np.stack(
            [self.prefixes[tier].latency_tokens[p].float().cpu().numpy() for tier, p in self.stage1]
        )

    def finish(
        self,
        choices: Sequence[tuple[int, int] | None],
        budget_ms: float | None = None,
    ) -> list[Execution | None]:
        """Runs every member to its answer with its (top_k, num_blocks); None skips a member.

        Args:
            choices: of each member.
            budget_ms: budget in ms of the device, see `MolmoEExecutor.advance`.

        Raises:
            ValueError: a choice is masked at the member's insertion position.
        """
        done: dict[Knobs, Execution] = {}
        results: list[Execution | None] = []
        for (tier, position), choice in zip(self.stage1, choices, strict=True):
            if choice is None:
                results.append(None)
                continue
            knobs = Knobs(tier=tier, position=position, top_k=choice[0], num_blocks=choice[1])
            if knobs not in done:
                prefix = self.prefixes[tier]
                done[knobs] = self.executor.advance(prefix, knobs, budget_ms, self.decoding)
            results.append(done[knobs])
        return results

    def cheapest_latency_ms(self) -> float:
        """Latency of the cheapest configuration on the sample, measured now, without a controller.

        It runs without a budget token; of a prefix that has one, only the embedded prompt is used.
        """
        tier, position = CHEAPEST_KNOBS.tier, CHEAPEST_KNOBS.position
        prefix = self.prefixes.get(tier)
        if prefix is None:
            prefix = self.executor.begin(self.sample, tier, None, self._look())
        elif prefix.has_budget_token or position not in prefix.hidden:
            prefix = self.executor.restart(prefix)
        self.executor.deepen(prefix, position)
        return self.executor.advance(prefix, CHEAPEST_KNOBS).latency_ms

    def budget_gradient(self, gradients_GD: np.ndarray) -> np.ndarray:
        """Maps dL/d(latency token) of every member [G, D] to dL/d(budget token) [D]."""
        assert self.budget_token_D is not None, "the group ran without a budget token"
        total = np.zeros_like(gradients_GD[0])
        for tier, prefix in self.prefixes.items():
            by_position: dict[int, np.ndarray] = {}
            for (member_tier, position), row in zip(self.stage1, gradients_GD, strict=True):
                if member_tier is tier and row.any():
                    by_position[position] = by_position.get(position, 0) + row
            if by_position:
                total = total + self.executor.budget_gradient(
                    prefix, self.budget_token_D, by_position
                )
        return total


@dataclass(frozen=True, slots=True)
class GroupExecutor:
    """A frozen model as the environment sees it; implements `envs.spec.Executor`.

    Attributes:
        executor: the frozen model.
        sees_image: whether the features of a sample include its image.
        decoding: how answers are decoded.
    """

    executor: MolmoEExecutor
    sees_image: bool = True
    decoding: Decoding | None = None

    @property
    def d_model(self) -> int:
        """Width of language features and latency tokens."""
        return self.executor.d_model

    @property
    def image_dim(self) -> int:
        """Length of the image feature, 0 without one."""
        return self.executor.image_dim if self.sees_image else 0

    def open(self, sample: Sample) -> MolmoEGroupSession:
        """Starts a group of episodes on one sample."""
        return MolmoEGroupSession(
            self.executor, sample, sees_image=self.sees_image, decoding=self.decoding
        )


def run_configurations(
    executor: MolmoEExecutor,
    sample: Sample,
    configurations: Sequence[Knobs],
    budget_ms: float | None = None,
    decoding: Decoding | None = None,
) -> list[Execution]:
    """Runs configurations on one sample without a controller.

    Work that they share is done once. Those that end near `budget_ms`, in ms of the device, may be
    measured repeatedly.

    Raises:
        DataError: the sample is unusable; names it.
    """
    group = MolmoEGroupSession(executor, sample, decoding=decoding)
    group.begin([(knobs.tier, knobs.position) for knobs in configurations], None)
    chosen = [(knobs.top_k, knobs.num_blocks) for knobs in configurations]
    return [e for e in group.finish(chosen, budget_ms) if e is not None]

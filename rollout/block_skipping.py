"""Chooses which blocks are skipped: the least important ones, deterministically.

Scores ship for the model configurations in `SHIPPED_SCORES`. Those of MolmoE-1B-0924 are measured:
the accuracy that is lost when one block is skipped and all others run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rollout.molmoe.config import MolmoEConfig, read_json

SHIPPED_SCORES = {
    MolmoEConfig(): Path(__file__).parent / "importance_scores" / "molmoe-1b-0924.json"
}
"""Files of measured scores, by model configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockImportance:
    """One score per block of the model; blocks with low scores are skipped first."""

    scores: tuple[float, ...]

    @classmethod
    def from_mapping(cls, scores: Mapping[str, float], num_blocks: int) -> BlockImportance:
        """Reads scores by block index.

        The first and the last block may be missing, because studies often leave them out; they are
        then never skipped.

        Raises:
            ValueError: another block has no finite score, or a block is unknown.
        """
        ends = {0, num_blocks - 1}
        try:
            found = {int(key): float(value) for key, value in scores.items()}
        except (TypeError, ValueError):
            raise ValueError("importance scores map block indices to numbers") from None
        missing = sorted(set(range(num_blocks)) - ends - set(found))
        unknown = sorted(set(found) - set(range(num_blocks)))
        broken = sorted(key for key, value in found.items() if not math.isfinite(value))
        for name, blocks in (("missing", missing), ("unknown", unknown), ("not finite", broken)):
            if blocks:
                raise ValueError(
                    f"importance scores for blocks {blocks} are {name}: "
                    f"measure all {num_blocks} with launch/block_importance.py"
                )
        return cls(scores=tuple(found.get(index, math.inf) for index in range(num_blocks)))

    @classmethod
    def from_file(cls, path: Path, num_blocks: int) -> BlockImportance:
        """Reads a JSON file of scores by block; raises ValueError naming an unusable file."""
        scores = read_json(path, "measure the scores with launch/block_importance.py")
        try:
            return cls.from_mapping(scores, num_blocks)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def of_model(cls, config: MolmoEConfig, folder: Path) -> BlockImportance:
        """The scores in a model's own folder, or those that ship for its configuration.

        Raises:
            ValueError: there are neither; says how to measure them.
        """
        own = folder / "importance_scores.json"
        path = own if own.is_file() else SHIPPED_SCORES.get(config)
        if path is None:
            raise ValueError(
                f"there is no block importance for the model in {folder}: measure it with `python "
                f"launch/block_importance.py OUT.json --worker.model {folder}`, then give "
                "--worker.importance OUT.json"
            )
        return cls.from_file(path, config.n_layers)

    def kept(self, position: int, num_blocks: int) -> tuple[int, ...]:
        """The blocks that run: all before `position`, then the most important ones, in order.

        Of equally important blocks the earlier one is kept.
        """
        rest = sorted(range(position, len(self.scores)), key=lambda i: (-self.scores[i], i))
        return tuple(sorted([*range(position), *rest[: num_blocks - position]]))

    def skipped(self, position: int, num_blocks: int) -> frozenset[int]:
        """The blocks that do not run."""
        return frozenset(range(len(self.scores))) - set(self.kept(position, num_blocks))

"""Outcomes of all 225 configurations on samples of one split, as `studies.outcomes` writes them.

Shapes: S samples, C configurations in the order of `envs.spec.all_knobs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs.spec import Sample, all_knobs
from envs.tasks import build_tasks
from launch.run.recipes import SHIPPED_PROFILE
from rollout.profiling.conversion import sample_place
from rollout.profiling.profile_table import ProfileTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Scores without latencies.

    Attributes:
        split: split of the samples.
        index_S: index of each sample in its split.
        scores_SC: float32.
    """

    split: str
    index_S: np.ndarray
    scores_SC: np.ndarray

    @classmethod
    def load(cls, folder: Path, split: str) -> Outcomes:
        """All that `studies.outcomes` wrote into a folder; raises ValueError if it is nothing."""
        files = [np.load(file) for file in sorted(folder.glob("*.npz"))]
        if not files:
            raise ValueError(f"{folder} holds no outcomes: run studies.outcomes first")
        return cls(
            split=split,
            index_S=np.concatenate([file["index"] for file in files]),
            scores_SC=np.concatenate([file["scores"] for file in files]).astype(np.float32),
        )

    @classmethod
    def shipped(cls, rows: range) -> Outcomes:
        """Some samples of the shipped profile, to try a study without hours of measuring."""
        profile = ProfileTable.load(SHIPPED_PROFILE)
        places = [sample_place(profile.sample_ids[row]) for row in rows]
        columns = [profile.column(knobs) for knobs in all_knobs()]
        return cls(
            split=places[0][0],
            index_S=np.array([index for _, index in places]),
            scores_SC=profile.scores[rows][:, columns].astype(np.float32),
        )

    def samples(self) -> list[Sample]:
        """The samples themselves."""
        tasks = build_tasks()
        return [tasks.sample(self.split, int(index)) for index in self.index_S]

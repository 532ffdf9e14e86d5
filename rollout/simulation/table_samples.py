"""The samples of a table world: their profile, the controller's inputs, budgets and calibration.

Shapes: S samples, C configurations, D d_model, I length of the image feature, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.budgets import BudgetSampler
from envs.calibration import Calibration
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, HEAD_SIZES, Features
from rollout.profiling.profile_table import ProfileTable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableSamples:
    """The samples of one split.

    Attributes:
        table: scores and latencies of all 225 configurations.
        language_feature_SD: float32, the controller's input for each prompt.
        image_feature_SI: float32, its input for each image; I = 0 without.
    """

    table: ProfileTable
    language_feature_SD: np.ndarray
    image_feature_SI: np.ndarray

    def __post_init__(self) -> None:
        for shape in (self.language_feature_SD.shape, self.image_feature_SI.shape):
            if len(shape) != 2 or shape[0] != len(self.table.sample_ids):
                raise ValueError(
                    f"features are {shape} for {len(self.table.sample_ids)} samples: give one row "
                    "each"
                )

    def features(self, row: int) -> Features:
        """What stage 1 sees of a sample."""
        return Features(language=self.language_feature_SD[row], image=self.image_feature_SI[row])


def column_by_action(table: ProfileTable) -> np.ndarray:
    """The table's column for each choice of the four heads, int64 [3, 5, 5, 5]; -1 if masked.

    Raises:
        ValueError: if a valid configuration is not in the table.
    """
    columns = np.full(HEAD_SIZES, -1)
    for column, knobs in enumerate(table.configurations):
        columns[knobs.indices()] = column
    if (columns >= 0).sum() < 225:
        raise ValueError(
            f"the profile holds {(columns >= 0).sum()} of 225 configurations: profile all of them"
        )
    return columns


def mean_embeddings(
    prompts: Sequence[str], encode: Callable[[str], np.ndarray], embedding_VD: np.ndarray
) -> np.ndarray:
    """Language features of prompts, float32 [S, D], like `MolmoEExecutor.language_feature`.

    Args:
        prompts: S prompts.
        encode: maps a prompt to token ids, for instance `Preprocessor.encode_prompt`.
        embedding_VD: word embeddings of the frozen model.
    """
    return np.stack([embedding_VD[encode(prompt)].mean(0) for prompt in prompts]).astype(np.float32)


def budgets_of(table: ProfileTable) -> BudgetSampler:
    """The budgets that a run would measure on this table."""
    return BudgetSampler.from_latencies(*extreme_latencies(table).T)


def extreme_latencies(table: ProfileTable) -> np.ndarray:
    """Latencies of the cheapest and the full configuration, [S, 2]."""
    columns = [table.column(knobs) for knobs in (CHEAPEST_KNOBS, FULL_KNOBS)]
    return table.latencies_ms[:, columns].astype(np.float64)


def calibration_of(table: ProfileTable) -> Calibration:
    """The calibration from all samples of a table."""
    return Calibration.of_latencies(extreme_latencies(table)[None])

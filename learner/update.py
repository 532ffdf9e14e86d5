"""What passes between the parts of one update, and what is recorded of it.

Shapes: N groups, G episodes of each, S surrogates of an episode, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from learner.batch import EpisodeBatch
from learner.expected_groups import ExpectedGroups
from learner.losses import LossMetrics
from learner.replay import ReplayRecord
from rollout.group_rollout import GroupRollout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredGradient:
    """The gradient of a step's groups, between `learn_from_groups` and `update`.

    `latency_token_grads` goes to the rollout actors: dL/d(latency token) of each group, float32
    [G, D]; that of masked groups comes from the entropy bonus alone. `expected` is None if the
    policy follows no model: without replay, or before enough is remembered.
    """

    groups: Sequence[GroupRollout]
    score_rewards_NG: np.ndarray
    constraint_rewards_NG: np.ndarray
    batch: EpisodeBatch
    expected: ExpectedGroups | None
    proximal_log_probs_BS: Tensor
    metrics: LossMetrics
    latency_token_grads: list[np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecord:
    """Results of one update, for the logs.

    Attributes:
        version: version of the weights after the update.
        applied: False if the update was skipped for a non-finite loss or gradient.
        num_nonfinite_total: updates skipped so far in the run.
        loss: metrics of the last pass.
        entropy_coef: weight of the entropy bonus.
        grad_norm: norm of the whole gradient in the first pass, before clipping.
        num_groups: number of groups in the batch.
        num_zero_variance_groups: number of groups whose rewards are all equal, which are masked
            unless the policy follows the outcome model.
        advantage_abs_mean: mean absolute advantage of the active episodes.
        staleness_mean: mean number of versions between the weights that acted and the updated ones.
        staleness_max: maximum of the same.
        replay: results of replay; None if the policy follows no model.
        state_bytes: size of what the learner's actor handed over after the update.
        memory_bytes: resident memory of its process.
    """

    version: int
    applied: bool
    num_nonfinite_total: int
    loss: LossMetrics
    entropy_coef: float
    grad_norm: float
    num_groups: int
    num_zero_variance_groups: int
    advantage_abs_mean: float
    staleness_mean: float
    staleness_max: int
    replay: ReplayRecord | None
    state_bytes: int = 0
    memory_bytes: int = 0


class NonFiniteUpdateError(RuntimeError):
    """Too many consecutive updates had a non-finite loss or gradient.

    Attributes:
        message: what happened.
        name: file name for the last batch.
        batch: the last batch, as an .npz; the learner may run on another machine than the run.
    """

    def __init__(self, message: str, name: str, batch: bytes) -> None:
        super().__init__(message, name, batch)
        self.message, self.name, self.batch = message, name, batch

    def __str__(self) -> str:
        return self.message

    def save(self, folder: Path) -> Path:
        """Writes the batch into a folder; returns its path."""
        path = folder / self.name
        path.write_bytes(self.batch)
        return path

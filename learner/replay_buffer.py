"""The groups that a learner remembers, to learn from each of them many times.

Shapes: M groups remembered, N new groups, B drawn groups, G episodes of a group, E configurations
scored off the clock, D d_model, I length of the image feature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from learner.archive import Archive, name_of, packed, unpacked
from rollout.group_rollout import GroupRollout
from rollout.profiling.profile_table import ProfileTable

STORED_DTYPE = torch.float16
"""Dtype of features and tokens. Half precision keeps checkpoints of all experience small; values
beyond its range are clipped."""


MAX_TASKS = 16
"""Number of tasks that are told apart; any further ones count as the last."""


class TaskNames:
    """Numbers the tasks of a run in the order in which they appear."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = list(names)

    def number(self, name: str) -> int:
        """The number of a task, below MAX_TASKS."""
        if name not in self.names:
            self.names.append(name)
        return min(self.names.index(name), MAX_TASKS - 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episodes:
    """Groups of one size as tensors.

    Attributes:
        language_feature_MD: mean word embedding of each prompt.
        image_feature_MI: I = 0 if stage 1 does not see the image.
        budgets_ms_M: float64, calibrated ms.
        prices_M: float64, prices of time.
        tasks_M: int64, number of the task, as `TaskNames` counts them.
        latency_token_MGD: as the policy that acted saw them.
        actions_MG4: int64, choice indices.
        scores_MG: in [0, 1].
        log_ms_MG: logarithms of latencies in calibrated ms.
        scored_actions_ME4: int64, further configurations that were scored and not measured.
        scored_ME: their scores; not a number where the sample could not be scored.
    """

    language_feature_MD: Tensor
    image_feature_MI: Tensor
    budgets_ms_M: Tensor
    prices_M: Tensor
    tasks_M: Tensor
    latency_token_MGD: Tensor
    actions_MG4: Tensor
    scores_MG: Tensor
    log_ms_MG: Tensor
    scored_actions_ME4: Tensor
    scored_ME: Tensor

    @classmethod
    def of(cls, groups: Sequence[GroupRollout], tasks: TaskNames) -> Self:
        """The groups of one batch; their tasks are numbered as they are first seen."""

        def stacked(name: str, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.array([getattr(g, name) for g in groups])).to(dtype)

        def small(name: str) -> Tensor:
            limit = torch.finfo(STORED_DTYPE).max
            return stacked(name, torch.float32).clamp(-limit, limit).to(STORED_DTYPE)

        return cls(
            language_feature_MD=small("language_feature"),
            image_feature_MI=small("image_feature"),
            budgets_ms_M=stacked("budget_ms", torch.float64),
            prices_M=stacked("price", torch.float64),
            tasks_M=torch.tensor([tasks.number(group.task) for group in groups]),
            latency_token_MGD=small("latency_tokens"),
            actions_MG4=stacked("actions", torch.int64),
            scores_MG=stacked("scores", torch.float32),
            log_ms_MG=stacked("latencies_ms", torch.float64).log().float(),
            scored_actions_ME4=stacked("scored_actions", torch.int64),
            scored_ME=stacked("scored", torch.float32),
        )

    @classmethod
    def of_profile(
        cls,
        table: ProfileTable,
        language_MD: np.ndarray,
        image_MI: np.ndarray,
        tasks: TaskNames,
    ) -> Self:
        """The samples of a profile as groups of all its configurations.

        They have no latency tokens, so that they teach an outcome model and no policy.

        Args:
            table: profile, in calibrated ms.
            language_MD: language feature of each of its samples.
            image_MI: image features.
            tasks: numbers the tasks.
        """
        count, num_actions = table.scores.shape
        actions_C4 = torch.tensor([knobs.indices() for knobs in table.configurations])
        return cls(
            language_feature_MD=torch.from_numpy(language_MD),
            image_feature_MI=torch.from_numpy(image_MI),
            budgets_ms_M=torch.ones(count, dtype=torch.float64),
            prices_M=torch.zeros(count, dtype=torch.float64),
            tasks_M=torch.tensor([tasks.number(task) for task in table.tasks]),
            latency_token_MGD=torch.zeros(count, num_actions, 0),
            actions_MG4=actions_C4.expand(count, -1, -1),
            scores_MG=torch.from_numpy(table.scores).float(),
            log_ms_MG=torch.from_numpy(table.latencies_ms).float().log(),
            scored_actions_ME4=actions_C4[:0].expand(count, -1, -1),
            scored_ME=torch.zeros(count, 0),
        )

    def __len__(self) -> int:
        return len(self.budgets_ms_M)

    @property
    def is_finite_M(self) -> Tensor:
        """Whether every measured value of each group is a finite number: bool [M]."""
        fields = [
            tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
            for name, tensor in self.tensors().items()
            if name != "scored_ME"
        ]
        return torch.stack([field.isfinite().all(1) for field in fields]).all(0)

    def tensors(self) -> dict[str, Tensor]:
        """All fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def rows(self, rows_B: Tensor | slice) -> Self:
        """Some of the groups."""
        return type(self)(**{name: tensor[rows_B] for name, tensor in self.tensors().items()})

    def room_for(self, count: int) -> Self:
        """As many groups of this kind, with values yet to be filled in."""
        return type(self)(
            **{name: own.new_empty(count, *own.shape[1:]) for name, own in self.tensors().items()}
        )

    def to(self, like: Tensor) -> Self:
        """With the device of `like`, and floats of its dtype, except the terms."""
        return type(self)(
            **{
                name: tensor.to(like.device)
                if tensor.dtype in (torch.int64, torch.float64)
                else tensor.to(like)
                for name, tensor in self.tensors().items()
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberedBatch:
    """Groups that were remembered together: their number, and their place in an archive."""

    name: str
    content: bytes
    num_groups: int


class ReplayBuffer:
    """The most recent groups of a run, at most `capacity` of them, in a ring of tensors.

    They are forgotten in the batches in which they came, so that a batch is part of a state as a
    whole or not at all.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._batches: deque[RememberedBatch] = deque()
        self._ring: Episodes | None = None
        self._first = self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, new: Episodes) -> None:
        """Remembers groups, and forgets the oldest batches beyond the capacity."""
        new = new.rows(slice(-self.capacity, None))
        content = packed(new.tensors())
        batch = RememberedBatch(name=name_of(content), content=content, num_groups=len(new))
        self._batches.append(batch)
        while self._count + len(new) > self.capacity:
            self._forget(self._batches.popleft().num_groups)
        if self._ring is None:
            self._ring = new.room_for(self.capacity)
        rows_N = self._rows(torch.arange(self._count, self._count + len(new)))
        for name, tensor in self._ring.tensors().items():
            tensor[rows_N] = getattr(new, name)
        self._count += len(new)

    def draw(self, count: int, rng: torch.Generator) -> Episodes:
        """Groups drawn with replacement."""
        return self._at(torch.randint(len(self), (count,), generator=rng))

    @property
    def episodes(self) -> Episodes:
        """All groups, the oldest first."""
        return self._at(torch.arange(len(self)))

    @property
    def names(self) -> list[str]:
        """Names of the remembered batches in their archive, the oldest first."""
        return [batch.name for batch in self._batches]

    def archive(self) -> dict[str, bytes]:
        """The remembered batches."""
        return {batch.name: batch.content for batch in self._batches}

    def restore(self, names: Sequence[str], archive: Archive) -> None:
        """Remembers these batches and nothing else."""
        self._batches.clear()
        self._first = self._count = 0
        for name in names:
            self.add(Episodes(**unpacked(archive[name])))

    def _forget(self, num_groups: int) -> None:
        self._first, self._count = self._first + num_groups, self._count - num_groups

    def _rows(self, rows_N: Tensor) -> Tensor:
        """Rows of the ring, from rows counted from the oldest group."""
        return (self._first + rows_N) % self.capacity

    def _at(self, rows_N: Tensor) -> Episodes:
        assert self._ring is not None, "add groups first"
        return self._ring.rows(self._rows(rows_N))

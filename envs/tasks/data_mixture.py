"""Several data sets as one task: each passes through whole epochs, at its share of the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from envs.spec import DataError, Sample, Task
from envs.tasks.mixture import Mixture
from envs.tasks.sample_order import PLACES, permutation
from envs.tasks.scene import SPLITS, check_split
from envs.tasks.vqa.vqa_task import VqaTask

ROUND = 1000
"""Samples of a round, in which each task has its share, in its own order."""


class DataMixture(Mixture):
    """A mixture in which tasks with a finite number of samples take them in turn.

    A picture that is in the test split of one data set is in no other split of any of them, and
    one that is in a validation split in no training split.

    Args:
        tasks: by name, data sets and tasks that render their samples.
        weights: see `Mixture`.
    """

    def __init__(self, tasks: Mapping[str, Task], weights: Mapping[str, float]) -> None:
        super().__init__(tasks, weights)
        self.data_sets = {name: t for name, t in tasks.items() if isinstance(t, VqaTask)}
        for kept, split in (("test", "validation"), ("test", "train"), ("validation", "train")):
            for name, task in self.data_sets.items():
                keys = task.keys(kept)
                for other in self.data_sets.values():
                    other.drop_pictures(split, keys, of=name)
        self._schedule = cache(self._new_schedule)

    def descriptions(self) -> tuple[str, ...]:
        """See `Mixture.descriptions`."""
        scoring = {name: task.data_set.scoring() for name, task in self.data_sets.items()}
        return tuple(
            f"{name} ({scoring[name]})" if scoring.get(name) else name for name in self.tasks
        )

    def sample(self, split: str, index: int) -> Sample:
        """The sample of (split, index), whose id names this index.

        Raises:
            DataError: no data set has this split, or the sample is unusable.
        """
        if index < 0:
            raise DataError(f"sample {split}/{index}: the index must not be negative")
        order, place = divmod(index, PLACES)
        number, slot = divmod(place, ROUND)
        names, counts = self._schedule(check_split(split))
        task_of_slot = np.repeat(np.arange(len(names)), counts)
        task_of_slot = task_of_slot[permutation(f"{self.name}/{split}", order, number, ROUND)]
        chosen = int(task_of_slot[slot])
        earlier = int((task_of_slot[:slot] == chosen).sum())
        own = order * PLACES + number * int(counts[chosen]) + earlier
        name = names[chosen]
        return replace(self._sample_of(name, split, own), id=f"{name}/{split}/{index}")

    def num_samples(self, split: str) -> int:
        """Samples of all data sets in a split; 0 if all tasks render theirs."""
        return sum(task.num_samples(split) for task in self.data_sets.values())

    def has_samples(self, split: str) -> bool:
        """Whether any data set or rendered task has samples in a split."""
        return len(self.data_sets) < len(self.tasks) or self.num_samples(split) > 0

    def census(self) -> dict[str, dict[str, int]]:
        """Samples of each data set by split, and those dropped because of a shared picture."""
        return {
            name: {
                **{split: task.num_samples(split) for split in SPLITS},
                "dropped": sum(task.dropped.values()),
            }
            for name, task in self.data_sets.items()
        }

    def _new_schedule(self, split: str) -> tuple[list[str], np.ndarray]:
        """The tasks that have samples in a split, and how many each gives to a round."""
        names = [
            name
            for name in self.tasks
            if name not in self.data_sets or self.data_sets[name].num_samples(split)
        ]
        if not names:
            raise DataError(f"none of {', '.join(self.tasks)} has a {split} split: add a data set")
        shares = np.array([self.shares[name] for name in names])
        exact = ROUND * shares / shares.sum()
        counts = np.maximum(exact.astype(int), 1)
        while counts.sum() != ROUND:
            step = 1 if counts.sum() < ROUND else -1
            counts[int(np.argmax(step * (exact - counts)))] += step
        return names, counts

"""The task that any data set becomes: splits without a shared picture, order, decoding."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from envs.spec import DataError, Sample
from envs.tasks.sample_order import row_at
from envs.tasks.scene import SPLITS, check_split
from envs.tasks.vqa.cells import reading
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.data_set import DataSet, Entry
from envs.tasks.vqa.opening import open_splits
from envs.tasks.vqa.split import Split


class VqaTask:
    """A data set as a task; it is opened when it is first used.

    Args:
        data_set: rows, prompts and metric.
        config: where it is found.
    """

    def __init__(self, data_set: DataSet, config: DataConfig) -> None:
        self.data_set = data_set
        self.name = data_set.name
        self.config = config
        self.dropped: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.dropped_for: Counter[str] = Counter()
        """Dropped samples by the data set that has their picture in a split that is kept."""
        self._lock = threading.RLock()

    @cached_property
    def _splits(self) -> dict[str, Split]:
        return open_splits(self.data_set, self.config)

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits; opens the data set if that has not been done, from any thread."""
        with self._lock:
            return self._splits

    def num_samples(self, split: str) -> int:
        """Number of samples of a split."""
        return len(self.splits[check_split(split)].numbers)

    def keys(self, split: str) -> frozenset[str]:
        """The pictures of a split."""
        return self.splits[check_split(split)].keys()

    def drop_pictures(self, split: str, keys: Iterable[str], of: str = "") -> None:
        """Removes the samples with these pictures from a split, and counts them in `dropped`.

        Args:
            split: one of the three splits.
            keys: the pictures.
            of: name of the data set that keeps them.
        """
        before = self.splits[check_split(split)]
        after = before.where(~before.has_picture_in(frozenset(keys)))
        gone = len(before.numbers) - len(after.numbers)
        self.dropped[split] += gone
        self.dropped_for += Counter({of: gone})
        self.splits[split] = after

    def entry(self, split: str, index: int) -> Entry:
        """The question at an index, in the order of `envs.tasks.sample_order`.

        Raises:
            DataError: the split is unknown or empty, the index negative, or the row unusable.
        """
        if index < 0:
            raise DataError(f"sample {self.name}/{split}/{index}: the index must not be negative")
        part = self.splits[check_split(split)]
        if not len(part.numbers):
            raise DataError(f"{self.name} has no {split} split with answers: use another data set")
        number = int(part.numbers[row_at(self.name, split, index, len(part.numbers))])
        with reading(f"sample {self.name}/{split}/{index} ({part.rows.place(number)})"):
            return self.data_set.entry(part.rows.row(number), part.rows, number)

    def sample(self, split: str, index: int) -> Sample:
        """See `envs.spec.Task`; the picture is decoded."""
        entry = self.entry(split, index)
        sample_id = f"{self.name}/{split}/{index}"
        name = f"{sample_id} ({entry.place or f'question {entry.question_id}'})"
        if entry.picture is None:
            raise DataError(f"sample {name}: its image is missing (an empty cell): take it out")
        return Sample(
            id=sample_id,
            task=self.name,
            image=entry.picture.open(name),
            prompt=entry.prompt,
            answers=entry.answers,
            metadata={"question_id": entry.question_id, **entry.metadata},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """See `envs.spec.Task`."""
        return self.data_set.score(sample, self.data_set.answer_text(answer))

"""What a data set is made of, and the task that any of them becomes.

A data set says where its published splits are, how a row becomes a question, and how an answer is
scored; `VqaTask` does the rest: splits without a shared picture, order, decoding.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from envs.spec import DataError, Sample
from envs.tasks.order import row_at
from envs.tasks.scene import SPLITS, check_split, split_of
from envs.tasks.vqa.cells import reading
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.output import scored_text
from envs.tasks.vqa.picture import Picture
from envs.tasks.vqa.rows import Records, Row, Rows, hub_rows, parquet_rows

HELD_OUT_WITHOUT_TRAINING = 0.3
"""Share that becomes validation and test where only one published split has answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One question of a data set.

    Attributes:
        question_id: its published id.
        picture: its picture, still encoded; None if the row has none.
        prompt: the user's text with its style.
        answers: reference answers.
        metadata: what is reported apart.
    """

    question_id: str
    picture: Picture | None
    prompt: str
    answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The published splits that have answers; an empty name means that there is none.

    Without `validation` it is made of a hash of the pictures of `train`; if `train` is empty or the
    same as `test`, all three are made of one split in this way.
    """

    train: str = ""
    validation: str = ""
    test: str


class DataSet(ABC):
    """One data set, in its own file: this says what the file has to define.

    Args:
        config: prompts and metrics.
    """

    name: str
    hub_id: str
    """Default repository of parquet files; empty if there is none."""
    configs: tuple[str | None, ...] = (None,)
    """Default configurations of it, joined in this order."""
    on_hub: Published
    in_original: Published | None
    """The splits of the original distribution; None if only its parquet form is read."""
    columns: tuple[tuple[str, ...], ...]
    """Columns that must be there, each with its alternatives."""
    key_columns: tuple[str, ...]
    """Columns that `is_usable` and `picture_key` read, as far as there are such."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def original(self, folder: Path, images: Path, split: str) -> Records:
        """A split of the original distribution, as rows with the hub's columns.

        Raises:
            DataError: a file is missing or not as published.
        """
        raise DataError("there are no parquet files, and the original distribution is not read")

    def is_usable(self, row: Row) -> bool:
        """Whether the row belongs to the data set at all."""
        return True

    def opened(self, rows: Rows) -> None:  # noqa: B027 -- most metrics need nothing of it
        """Called with the rows that training draws from, for metrics that need a corpus."""

    @abstractmethod
    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """Identifies the picture of a row across splits and data sets."""

    @abstractmethod
    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """The question of a row; raises DataError if the row is unusable."""

    @abstractmethod
    def score(self, sample: Sample, answer: str) -> float:
        """Score in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Rows of one published split, and the keys of their pictures."""

    rows: Rows
    numbers: np.ndarray
    keys: tuple[str, ...]

    def where(self, keep: Sequence[bool] | np.ndarray) -> Split:
        """The split with a part of its rows."""
        chosen = np.flatnonzero(keep)
        keys = tuple(self.keys[i] for i in chosen)
        return Split(rows=self.rows, numbers=self.numbers[chosen], keys=keys)


EMPTY = Split(rows=Records(records=()), numbers=np.zeros(0, np.int64), keys=())


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
        return frozenset(self.splits[check_split(split)].keys)

    def drop_pictures(self, split: str, keys: Iterable[str]) -> None:
        """Takes the samples with these pictures out of a split, and counts them in `dropped`."""
        gone = frozenset(keys)
        before = self.splits[check_split(split)]
        after = before.where([key not in gone for key in before.keys])
        self.dropped[split] += len(before.numbers) - len(after.numbers)
        self.splits[split] = after

    def entry(self, split: str, index: int) -> Entry:
        """The question at an index, in the order of `envs.tasks.order`.

        Raises:
            DataError: the split is unknown or empty, the index negative, or the row unusable.
        """
        if index < 0:
            raise DataError(f"sample {self.name}/{split}/{index}: the index must not be negative")
        part = self.splits[check_split(split)]
        if not len(part.numbers):
            raise DataError(f"{self.name} has no {split} split with answers: use another data set")
        number = int(part.numbers[row_at(self.name, split, index, len(part.numbers))])
        with reading(f"sample {self.name}/{split}/{index} (row {number})"):
            return self.data_set.entry(part.rows.row(number), part.rows, number)

    def sample(self, split: str, index: int) -> Sample:
        """See `envs.spec.Task`; the picture is decoded."""
        entry = self.entry(split, index)
        sample_id = f"{self.name}/{split}/{index}"
        name = f"{sample_id} (question {entry.question_id})"
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
        return self.data_set.score(sample, scored_text(answer))


def open_splits(data_set: DataSet, config: DataConfig) -> dict[str, Split]:
    """Train, validation and test of a data set, without a picture in two of them.

    Raises:
        DataError: the source cannot be read, or lacks columns; says what was found.
    """
    published = _published(data_set, config)
    names = dict.fromkeys((published.train, published.validation, published.test))
    parts = {name: _open(data_set, config, name) for name in names if name}
    train, test = parts.get(published.train, EMPTY), parts.get(published.test, EMPTY)
    with reading(f"{data_set.name}: the split that training draws from"):
        data_set.opened((train if published.train else test).rows)
    if published.validation:
        return {"train": train, "validation": parts[published.validation], "test": test}
    if published.train in ("", published.test):
        whole, held_out = test, HELD_OUT_WITHOUT_TRAINING
    else:
        whole, held_out = train, 2 * config.validation_share
    place = np.array([split_of(key, held_out=held_out) for key in whole.keys], dtype=object)
    validation = whole.where(place == "validation")
    if whole is test:
        return {
            "train": whole.where(place == "train"),
            "validation": validation,
            "test": whole.where(place == "test"),
        }
    return {"train": whole.where(place != "validation"), "validation": validation, "test": test}


def _published(data_set: DataSet, config: DataConfig) -> Published:
    is_original = _kind(data_set, config) == "original"
    known = data_set.in_original if is_original else data_set.on_hub
    known = known or data_set.on_hub
    own, name = config.splits, data_set.name
    return Published(
        train=own.get(f"{name}/train", known.train),
        validation=own.get(f"{name}/validation", known.validation),
        test=own.get(f"{name}/test", known.test),
    )


def _kind(data_set: DataSet, config: DataConfig) -> str:
    """How the source is read: `hub`, `parquet` or `original`."""
    source = config.sources.get(data_set.name, data_set.hub_id)
    if not source:
        raise DataError(
            f"{data_set.name} has no known repository of parquet files: name the folder of its "
            f"original distribution, --worker.data.sources {data_set.name} FOLDER"
        )
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith((".", "/", "~")):
            raise DataError(f"{data_set.name}: the folder {source} does not exist")
        return "hub"
    return "parquet" if next(folder.rglob("*.parquet"), None) else "original"


def _open(data_set: DataSet, config: DataConfig, split: str) -> Split:
    source, kind = config.sources.get(data_set.name, data_set.hub_id), _kind(data_set, config)
    own = config.configs.get(data_set.name)
    configs = data_set.configs if own is None else (own or None,)
    folder = Path(source).expanduser()
    with reading(f"{data_set.name}: split {split!r} of {source}"):
        if kind == "hub":
            rows: Rows = hub_rows(source, configs, split)
        elif kind == "parquet":
            rows = parquet_rows(folder, configs, split, is_strict=bool(own))
        else:
            rows = data_set.original(folder, config.images.get(data_set.name, folder), split)
        if not len(rows):
            raise DataError("it is empty: download it again, or name another split")
        _check_columns(data_set, rows)
        return _with_keys(data_set, rows)


def _with_keys(data_set: DataSet, rows: Rows) -> Split:
    present = [name for name in data_set.key_columns if name in rows.columns]
    numbers, keys = [], []
    for number, row in enumerate(rows.values(present)):
        with reading(f"row {number}"):
            if data_set.is_usable(row):
                numbers.append(number)
                keys.append(data_set.picture_key(row, rows, number))
    return Split(rows=rows, numbers=np.array(numbers, dtype=np.int64), keys=tuple(keys))


def _check_columns(data_set: DataSet, rows: Rows) -> None:
    missing = [names for names in data_set.columns if not set(names) & set(rows.columns)]
    if missing:
        expected = ", ".join(" or ".join(names) for names in missing)
        raise DataError(
            f"no column {expected} (found {', '.join(rows.columns)}): is it this data set, and a "
            "split with answers?"
        )

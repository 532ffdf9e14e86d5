"""What a data set has to define: where its published splits are, what a row asks, how it scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.spec import Sample
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.output import scored_text
from envs.tasks.vqa.picture import Picture
from envs.tasks.vqa.rows import Row, Rows

if TYPE_CHECKING:
    from envs.tasks.vqa.arrow_cache import ArrowCache
    from envs.tasks.vqa.split import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One question of a data set.

    Attributes:
        question_id: its published id.
        picture: its picture, still encoded; None if the row has none.
        prompt: the user's text with its style.
        answers: reference answers.
        metadata: what is reported separately.
        place: its question's id and where it is, for messages, if there is more than the id.
    """

    question_id: str
    picture: Picture | None
    prompt: str
    answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The published splits that have answers; an empty name means that there is none.

    Without `validation` it is made of a hash of the pictures of `train`; if `train` is empty or the
    same as `test`, all three are made of one split in this way, unless `is_divided` is false.
    """

    train: str = ""
    validation: str = ""
    test: str
    is_divided: bool = True


class DataSet(ABC):
    """One data set, in its own file: this says what the file has to define.

    The docstring of a loader's module says where its schema was seen: in a repository's code, on a
    viewer's page, in a paper, or not at all.

    Args:
        config: prompts and metrics.
    """

    name: str
    hub_ids: tuple[str, ...] = ()
    """Default repositories of parquet files, the present name before earlier ones."""
    configs: tuple[str | None, ...] = (None,)
    """Default configurations of it, joined in this order."""
    on_hub: Published
    in_original: Published | None = None
    """The splits of the original distribution; None if only its parquet form is read."""
    columns: tuple[tuple[str, ...], ...]
    """Columns that must be there, each with its alternatives."""
    key_columns: tuple[str, ...]
    """Columns that `is_usable` and `picture_key` read, if any."""
    scored_by: tuple[str, ...] = ()
    """Settings of `DataConfig` that decide how it scores."""
    folder_aliases: Mapping[str, Sequence[str]] = {}
    """Other names of published folders of pictures; letter case, `-` and `_` do not count."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def scoring(self) -> str:
        """How it scores if not by default, such as `vqa_score vqa_v2`; else empty."""
        default = type(self.config)()
        stated = {name: getattr(self.config, name) for name in self.scored_by}
        return ", ".join(f"{n} {v}" for n, v in stated.items() if v != getattr(default, n))

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """The files of a split of the original distribution, each with its names, best first."""
        raise NotImplementedError

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """The rows of a split of the original distribution, with the hub's columns.

        They are read once and kept as JSON. `image` is {"path": published relative path}.

        Args:
            split: published name of the split.
            paths: the files, in the order of `files`.

        Raises:
            DataError: a file is not as published.
        """
        raise NotImplementedError

    def settings(self) -> tuple[Any, ...]:
        """The settings on which `read` depends."""
        return ()

    def one_row_per_question(self, rows: Rows) -> Rows:
        """The rows of a table, unfolded if it has several questions in a row."""
        return rows

    def is_usable(self, row: Row) -> bool:
        """Whether the row belongs to the data set at all."""
        return True

    def opened(self, train: Split, cache: ArrowCache) -> None:  # noqa: B027 -- few metrics need it
        """Called with the training split, for metrics that need a corpus."""

    @abstractmethod
    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """Identifies the picture of a row across splits and data sets."""

    def name_of_picture(self, key: str) -> str:
        """The part of a picture's key by whose hash splits are divided; the same on every node."""
        return key

    @abstractmethod
    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """The question of a row; raises DataError if the row is unusable."""

    def answer_text(self, output: str) -> str:
        """The part of an output that is scored; by default as in Molmo's evaluation."""
        return scored_text(output)

    @abstractmethod
    def score(self, sample: Sample, answer: str) -> float:
        """Score in [0, 1] of a scored part of an output."""

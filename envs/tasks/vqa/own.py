"""A user's own data: a folder of pictures with a CSV or JSON lines file per split, without Python.

The schema is ours; docs/your_model_and_data.md describes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from envs.spec import DataError, Sample
from envs.tasks.metrics import exact_match
from envs.tasks.vqa.cells import question_text, reading, reference_answers
from envs.tasks.vqa.coco_2014_vqa import SOFT_SCORES
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.own_tables import SPLIT_NAMES, Tables, answers_of, find_tables, read_table
from envs.tasks.vqa.picture import Picture
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Row, Rows
from envs.tasks.vqa.text_match import molmo_anls

PICTURE_PLACES = ("", "images/", "pictures/")

FILE = "file:"
"""Beginning of a picture's key; the rest is the path of its file."""


class OwnDataSet(DataSet):
    """Questions of the user's files.

    Args:
        name: the user's name for it.
        config: its folder, style and metric.
    """

    hub_ids = ()
    scored_by = ("metrics", "vqa_score")
    columns = (("question",), ("answers",), ("image",))
    key_columns = ("image",)

    def __init__(self, name: str, config: DataConfig) -> None:
        super().__init__(config)
        self.name = name

    @cached_property
    def tables(self) -> Tables:
        """The tables of the folder; `train` alone if there is one file of another name."""
        return find_tables(Path(self.config.own[self.name]).expanduser())

    @cached_property
    def _root(self) -> Path:
        """The folder of the pictures, without links."""
        own = self.config.own[self.name]
        return Path(self.config.images.get(self.name, own)).expanduser().resolve()

    @property
    def in_original(self) -> Published | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The splits that have a file; a single one for training is divided into all three."""
        with reading(self.name):
            tables = self.tables
        if tables.is_divided:
            return Published(train="train", test="train")
        present = tables.by_split
        if list(present) == ["train", "validation"]:  # what is held out is for the test
            return Published(train="train", test="validation")
        train, validation, test = (s if s in present else "" for s in SPLIT_NAMES)
        return Published(train=train, validation=validation, test=test, is_divided=bool(train))

    on_hub = Published(train="train", test="test")

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """The file of the split, by its path below the folder."""
        folder = Path(self.config.own[self.name]).expanduser()
        return ((str(self.tables.by_split[split].relative_to(folder)),),)

    def settings(self) -> tuple[Any, ...]:
        """The folder of the pictures, in which their paths are resolved."""
        return (str(self._root),)

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """The rows with our column names, and the line number of each."""
        with reading(str(paths[0])):
            yield from read_table(paths[0])

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The file of the picture, without links, in whichever way the row writes its path."""
        if not isinstance(row["image"], str) or not row["image"].strip():
            raise DataError(f"line {row['line']} names no image: give a path below the folder")
        found = next((path for path in self._paths(row, rows) if os.path.isfile(path)), None)
        return f"{FILE}{_without_links(str(found or next(self._paths(row, rows))))}"

    def name_of_picture(self, key: str) -> str:
        """The path below the folder, so that the folder may be moved and nothing changes."""
        path = Path(key.removeprefix(FILE))
        below = path.relative_to(self._root) if path.is_relative_to(self._root) else path
        return f"{self.name}:{below}"

    def _paths(self, row: Row, rows: Rows) -> Iterator[Path]:
        assert rows.pictures is not None
        names = [f"{place}{row['image'].strip()}" for place in PICTURE_PLACES]
        return rows.pictures.paths(names)

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """The question in its style."""
        with reading(f"line {row['line']}"):
            question = question_text(row["question"])
            answers = reference_answers(answers_of(row["answers"]))
        own_id = "" if row.get("id") is None else str(row["id"]).strip()
        style = self.config.styles.get(self.name, "vqa2")
        place = f"line {row['line']} of {self.tables.by_split[rows.split].name}"
        return Entry(
            question_id=own_id or f"line {row['line']}",
            picture=Picture(paths=tuple(self._paths(row, rows))),
            prompt=styled(style, question.strip()) if style else question.strip(),
            answers=answers,
            place=f"question {own_id}, {place}" if own_id else place,
        )

    def score(self, sample: Sample, answer: str) -> float:
        """The metric of the configuration."""
        metrics: dict[str, Callable[[str, Sequence[str]], float]] = {
            "exact_match": exact_match,
            "anls": molmo_anls,
            "vqa": SOFT_SCORES[self.config.vqa_score],
        }
        return metrics[self.config.metrics.get(self.name, "exact_match")](answer, sample.answers)


def _without_links(path: str) -> str:
    """The path of a file without links; those of its folder are followed once."""
    if os.path.islink(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    return os.path.join(_folder_without_links(folder), name)


@lru_cache(maxsize=4096)
def _folder_without_links(folder: str) -> str:
    return os.path.realpath(folder)

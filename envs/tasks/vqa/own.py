"""A user's own data: a folder of pictures with a CSV or JSON lines file per split, without Python.

The schema is ours; docs/your_model_and_data.md describes it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from envs.spec import DataError, Sample
from envs.tasks.metrics import exact_match
from envs.tasks.vqa.cells import question_text, reading, reference_answers
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.finding import plain, walk
from envs.tasks.vqa.picture import Picture, picture_key
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Row, Rows
from envs.tasks.vqa.text_match import molmo_anls
from envs.tasks.vqa.vqa_v2 import SOFT_SCORES

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""Names of files without their suffix, by split."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "imagepath", "file", "filename", "filepath", "picture", "path"),
    "question": ("question", "prompt"),
    "answers": ("answers", "answer", "label"),
    "id": ("id", "questionid"),
}
"""Names of columns, best first; letter case, spaces, `-` and `_` do not count."""

PICTURE_PLACES = ("", "images/", "pictures/")


class OwnDataSet(DataSet):
    """Questions of the user's files.

    Args:
        name: the user's name for it.
        config: its folder, style and metric.
    """

    hub_ids = ()
    columns = (("question",), ("answers",), ("image",))
    key_columns = ("image",)

    def __init__(self, name: str, config: DataConfig) -> None:
        super().__init__(config)
        self.name = name

    @cached_property
    def _files(self) -> Mapping[str, Path]:
        """The file of each split; `train` alone if there is one file of another name."""
        folder = Path(self.config.own[self.name]).expanduser()
        tables = [
            place / name
            for place, _, names in walk(folder)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES
        ]
        found: dict[str, Path] = {}
        for split, names in SPLIT_NAMES.items():
            same = [path for path in tables if plain(path.stem) in names]
            if len(same) > 1:
                raise DataError(f"{same[0]} and {same[1]} are both the {split} split: keep one")
            if same:
                found[split] = same[0]
        if not found and len(tables) == 1:
            return {"train": tables[0]}
        if not found:
            listed = ", ".join(str(path.relative_to(folder)) for path in tables[:4]) or "none"
            raise DataError(
                f"{folder} has no train.csv or train.jsonl (tables found: {listed}): see 'Your "
                "data' in docs/your_model_and_data.md"
            )
        return found

    @property
    def in_original(self) -> Published | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The splits that have a file; of a single one all three are made."""
        with reading(self.name):
            present = list(self._files)
        return Published(
            train="train" if "train" in present else "",
            validation="validation" if len(present) == len(SPLIT_NAMES) else "",
            test=next(split for split in ("test", "validation", "train") if split in present),
        )

    on_hub = Published(train="train", test="test")

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """The file of the split."""
        return ((self._files[split].name,),)

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """The rows with our names of columns, and the line that each stands on."""
        path = paths[0]
        is_json = path.suffix.lower() in (".jsonl", ".ndjson")
        with reading(str(path)):
            for line, row in _json_lines(path) if is_json else _csv_lines(path):
                yield {"line": line, **_named(row, path, line)}

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The picture by its path, as far as that is no name of COCO or Visual Genome."""
        if not isinstance(row["image"], str) or not row["image"].strip():
            raise DataError(f"line {row['line']} names no image: give a path below the folder")
        return picture_key(row["image"].strip(), self.name)

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """The question in its style."""
        with reading(f"line {row['line']}"):
            question, answers = question_text(row["question"]), _answers(row["answers"])
        assert rows.pictures is not None
        names = [f"{place}{row['image'].strip()}" for place in PICTURE_PLACES]
        style = self.config.styles.get(self.name, "vqa2")
        return Entry(
            question_id=str(row.get("id") or f"line {row['line']}"),
            picture=Picture(paths=tuple(rows.pictures.paths(names))),
            prompt=styled(style, question.strip()) if style else question.strip(),
            answers=answers,
        )

    def score(self, sample: Sample, answer: str) -> float:
        """The metric of the configuration."""
        metrics: dict[str, Callable[[str, Sequence[str]], float]] = {
            "exact_match": exact_match,
            "anls": molmo_anls,
            "vqa": SOFT_SCORES[self.config.vqa_score],
        }
        return metrics[self.config.metrics.get(self.name, "exact_match")](answer, sample.answers)


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise DataError(f"line {line} is not JSON ({error}): correct it") from None
            if not isinstance(row, dict):
                raise DataError(f"line {line} is no object: write {{'image': ..., ...}}")
            yield line, row


def _csv_lines(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        separator = max(",;\t", key=header.count)
        reader = csv.DictReader(file, delimiter=separator)
        try:
            for row in reader:
                yield reader.line_num, {str(name): cell for name, cell in row.items()}
        except csv.Error as error:
            raise DataError(f"line {reader.line_num} is no CSV ({error}): correct it") from None


def _named(row: Row, path: Path, line: int) -> dict[str, Any]:
    """The row with our names of columns; raises DataError if one is missing."""
    present = {plain(name): name for name in row}
    found = {}
    for column, names in COLUMNS.items():
        name = next((present[name] for name in names if name in present), None)
        if name is not None:
            found[column] = row[name]
        elif column != "id":
            raise DataError(
                f"line {line} of {path.name} has no column {column} (found {', '.join(row)})"
            )
    return found


def _answers(cell: Any) -> tuple[str, ...]:
    """Reference answers: a list, one text or number, or texts with | between them."""
    if isinstance(cell, bool | int | float):
        cell = str(cell)
    if isinstance(cell, str):
        is_list = cell.strip().startswith("[")
        cell = json.loads(cell) if is_list else [part.strip() for part in cell.split("|")]
    return reference_answers([str(part) for part in cell] if isinstance(cell, list) else cell)

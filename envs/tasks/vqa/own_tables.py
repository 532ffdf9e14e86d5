"""The tables of a user's own data set: which file is which split, and what its lines hold."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.spec import DataError
from envs.tasks.vqa.finding import PACKED_SUFFIXES, plain, walk
from envs.tasks.vqa.rows import Row

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
"""Names of files without their suffix, by split."""

HELD_OUT_NAMES = ("eval", "evaluation", "holdout", "heldout")
"""Names that say that a table is not for training, but not which split it is."""

JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".csv", ".tsv", *JSON_LINES)

REMEDIES: Mapping[str, str] = {
    ".json": "write JSON lines, one object per line, and name it .jsonl",
    ".xlsx": "save it as CSV",
    ".xls": "save it as CSV",
    ".ods": "save it as CSV",
    ".parquet": "write it as CSV or JSON lines",
    **dict.fromkeys(PACKED_SUFFIXES, "unpack it there"),
}
"""What to do with a file that may be meant as a table, by its suffix."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "imagepath", "file", "filename", "filepath", "picture", "path"),
    "question": ("question", "prompt"),
    "answers": ("answers", "answer", "label"),
    "id": ("id", "questionid"),
}
"""Names of columns, best first; letter case, spaces, `-` and `_` are ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The tables of a folder.

    Attributes:
        by_split: the file of each split that has one.
        is_divided: whether the only one is divided into all three splits.
        unused: tables that belong to no split.
    """

    by_split: Mapping[str, Path]
    is_divided: bool = False
    unused: tuple[Path, ...] = ()


def find_tables(folder: Path) -> Tables:
    """The tables below a folder, among any number of pictures.

    Raises:
        DataError: there is none, or the split of one is unclear.
    """
    paths = [place / name for place, _, names in walk(folder) for name in names]
    tables = [path for path in paths if path.suffix.lower() in SUFFIXES]
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        same = [path for path in tables if plain(path.stem) in names]
        if len(same) > 1:
            raise DataError(f"{same[0]} and {same[1]} are both the {split} split: keep one")
        if same:
            found[split] = same[0]
    if found:
        unused = tuple(path for path in tables if path not in found.values())
        return Tables(by_split=found, is_divided=list(found) == ["train"], unused=unused)
    if len(tables) == 1 and plain(tables[0].stem) in HELD_OUT_NAMES:
        names = "train, validation or test"
        raise DataError(f"{tables[0]} is the only table: name it {names}, as it is meant")
    if len(tables) == 1:
        return Tables(by_split={"train": tables[0]}, is_divided=True)
    listed = ", ".join(str(path.relative_to(folder)) for path in tables[:4]) or "none"
    raise DataError(
        f"{folder} has no train.csv or train.jsonl (tables found: {listed}{_others(folder, paths)})"
        ": see 'Your data' in docs/your_model_and_data.md"
    )


def _others(folder: Path, paths: Sequence[Path]) -> str:
    """Other files that may be meant as tables, and what to do with them."""
    others = [path for path in paths if path.suffix.lower() in REMEDIES]
    named = [path for path in others if plain(path.name.split(".")[0]) in _all_names()]
    return "".join(
        f"; {path.relative_to(folder)} is not a table: {REMEDIES[path.suffix.lower()]}"
        for path in (named or others)[:3]
    )


def _all_names() -> set[str]:
    return {name for names in SPLIT_NAMES.values() for name in names}


def read_table(path: Path) -> Iterator[Row]:
    """The rows with our column names, and the `line` number of each.

    Raises:
        DataError: a line is not as described in docs/your_model_and_data.md; names it.
    """
    with _as_utf_8():
        if path.suffix.lower() in JSON_LINES:
            yield from _json_rows(path)
        else:
            yield from _csv_rows(path)


@contextmanager
def _as_utf_8() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"it is not UTF-8 text ({error.reason}): save it as UTF-8") from None


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise DataError(f"line {line} is not JSON ({error}): correct it") from None
            if not isinstance(row, dict):
                raise DataError(f"line {line} is not an object: write {{'image': ..., ...}}")
            places = _columns(list(row), f"line {line} of {path.name}")
            cells = list(row.values())
            yield {"line": line, **{column: cells[at] for column, at in places.items()}}


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = max(",;\t", key=file.readline().count)
        file.seek(0)
        reader = csv.reader(file, delimiter=separator)
        try:
            header = _without_empty_end(next(reader, []))
            places: Mapping[str, int] | None = None
            for cells in map(_without_empty_end, reader):
                if not cells:
                    continue
                where = f"line {reader.line_num} of {path.name}"
                if places is None:
                    places = _columns(header, where)
                if len(cells) > len(header):
                    raise DataError(
                        f"{where} has {len(cells)} cells under {len(header)} columns: put quotes "
                        f'around a cell with {separator!r} in it, such as "Who, if any?"'
                    )
                row = {c: cells[at] if at < len(cells) else None for c, at in places.items()}
                yield {"line": reader.line_num, **row}
        except csv.Error as error:
            raise DataError(f"line {reader.line_num} is not CSV ({error}): correct it") from None


def _without_empty_end(cells: Sequence[str]) -> list[str]:
    """The cells without the empty ones at the end, which spreadsheets add."""
    count = len(cells)
    while count and not cells[count - 1].strip():
        count -= 1
    return list(cells[:count])


def _columns(names: Sequence[str], where: str) -> dict[str, int]:
    """Where our columns are among those of a table.

    Raises:
        DataError: one is missing, or is there twice.
    """
    given = [plain(str(name)) for name in names]
    found = {}
    for column, known in COLUMNS.items():
        places = sorted((known.index(n), at) for at, n in enumerate(given) if n in known)
        if column == "id":  # an `id` next to a `question_id` takes precedence
            places = [place for place in places if place[0] == places[0][0]]
        if len(places) > 1:
            both = " and ".join(str(names[at]) for _, at in places[:2])
            raise DataError(f"{where} has two columns for {column}, {both}: keep one of them")
        if places:
            found[column] = places[0][1]
        elif column != "id":
            raise DataError(f"{where} has no column {column} (found {', '.join(map(str, names))})")
    return found


def answers_of(cell: Any) -> tuple[str, ...]:
    """Reference answers: a list, one text or number, or texts with | between them.

    Raises:
        DataError: one of several is empty or neither text nor number; there are no answers at all
            if the result is empty.
    """
    if isinstance(cell, str):
        if not cell.strip():
            return ()
        cell = _json_list(cell) if cell.strip().startswith("[") else cell.split("|")
    elif cell is None:
        return ()
    parts = cell if isinstance(cell, list) else [cell]
    for part in parts:
        if not isinstance(part, str | bool | int | float):
            raise DataError(
                f"one of its answers is {json.dumps(part)}: give texts or numbers, or take it out"
            )
        if not str(part).strip():
            raise DataError(f"one of its {len(parts)} answers is empty: fill it in or take it out")
    return tuple(str(part).strip() for part in parts)


def _json_list(text: str) -> list[Any]:
    try:
        return json.loads(text)
    except ValueError:
        raise DataError(
            f"its answers {text[:40]!r} begin with [ and are no list in JSON: write them as "
            '["one", "two"]'
        ) from None

"""Rows of a published split: of the `datasets` library, or of JSON texts in an Arrow file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from envs.tasks.vqa.finding import PictureFolders

Row = Mapping[str, Any]


class Rows(Protocol):
    """A published split, in its own order."""

    @property
    def split(self) -> str:
        """Published name of the split, which identifies its rows."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns."""
        ...

    @property
    def pictures(self) -> PictureFolders | None:
        """Where pictures that are named by a path are."""
        ...

    def __len__(self) -> int: ...

    def row(self, number: int) -> Row:
        """One row with all columns."""
        ...

    def values(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows with only these columns."""
        ...

    def place(self, number: int) -> str:
        """Where a row is, for messages."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Rows of files that the loaders read themselves, as JSON texts of a mapped Arrow table.

    They stay texts because errors in a published file show only when a row is used: one question
    without answers must not make the others unreadable.

    Attributes:
        table: a pyarrow table with a text column `record`.
        split: published name of the split.
        pictures: where the pictures lie.
        file: name of the file that a row came from.
    """

    table: Any
    split: str
    pictures: PictureFolders | None = None
    file: str = ""

    @property
    def columns(self) -> Sequence[str]:
        """The columns of the first row; keys may differ between rows."""
        return list(self.row(0)) if len(self) else []

    def __len__(self) -> int:
        return len(self.table) if self.table is not None else 0

    def row(self, number: int) -> Row:
        """See `Rows`."""
        return json.loads(self.table["record"][number].as_py())

    def values(self, columns: Sequence[str]) -> Iterator[Row]:
        """See `Rows`."""
        del columns
        return (self.row(number) for number in range(len(self)))

    def place(self, number: int) -> str:
        """See `Rows`."""
        return f"row {number} of {self.split}, {self.file}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of the `datasets` library, memory-mapped from its cache; pictures stay encoded.

    Attributes:
        table: a `datasets.Dataset`.
        split: published name of the split.
        pictures: where pictures that are named by a path are.
    """

    table: Any
    split: str
    pictures: PictureFolders | None = None

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns."""
        return self.table.column_names

    def __len__(self) -> int:
        return len(self.table)

    def row(self, number: int) -> Row:
        """See `Rows`."""
        return self.table[number]

    def values(self, columns: Sequence[str]) -> Iterator[Row]:
        """See `Rows`."""
        return iter(self.table.select_columns(list(columns)))

    def place(self, number: int) -> str:
        """See `Rows`."""
        return f"row {number} of {self.split}"


class Unfolded:
    """One row per question of a table that has one row per picture, with its questions in a list.

    Args:
        rows: one row per picture.
        column: column with the list of questions, each with columns of its own.
    """

    def __init__(self, rows: Rows, column: str) -> None:
        self._rows, self._column = rows, column
        counts = [len(_items(row[column])) for row in rows.values((column,))]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @property
    def split(self) -> str:
        """See `Rows`."""
        return self._rows.split

    @property
    def columns(self) -> Sequence[str]:
        """See `Rows`; `question_id` is made of the row and the place in it."""
        own = [name for name in self._rows.columns if name != self._column]
        item = next((i for n in range(len(self._rows)) for i in self._of(n)), {})
        return list(dict.fromkeys([*own, *item, "question_id"]))

    @property
    def pictures(self) -> PictureFolders | None:
        """See `Rows`."""
        return self._rows.pictures

    def __len__(self) -> int:
        return int(self._first[-1])

    def row(self, number: int) -> Row:
        """See `Rows`."""
        of_row = int(np.searchsorted(self._first, number, side="right")) - 1
        row = self._rows.row(of_row)
        at = number - int(self._first[of_row])
        return self._joined(row, _items(row[self._column])[at], of_row, at)

    def values(self, columns: Sequence[str]) -> Iterator[Row]:
        """See `Rows`."""
        own = [name for name in columns if name in self._rows.columns]
        for number, row in enumerate(self._rows.values([*own, self._column])):
            for place, item in enumerate(_items(row[self._column])):
                yield self._joined(row, item, number, place)

    def place(self, number: int) -> str:
        """See `Rows`."""
        of_row = int(np.searchsorted(self._first, number, side="right")) - 1
        return f"{self._rows.place(of_row)}, question {number - int(self._first[of_row])}"

    def _of(self, number: int) -> Sequence[Row]:
        return _items(self._rows.row(number)[self._column])

    def _joined(self, row: Row, item: Row, number: int, place: int) -> Row:
        own = {name: cell for name, cell in row.items() if name != self._column}
        return {**own, "question_id": f"{self.split}/{number}/{place}", **item}


def _items(cell: Any) -> Sequence[Row]:
    """The questions of a cell: a list of structs, or a struct of lists of one length."""
    if isinstance(cell, Mapping):
        return [dict(zip(cell, item, strict=True)) for item in zip(*cell.values(), strict=True)]
    return cell or ()

"""Edits that break a data set on disk, in its original form or in parquet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Edit = Callable[[Path], object]


def json_edit(name: str, change: Callable[[Any], Any]) -> Edit:
    """Changes the content of a JSON file; what `change` returns replaces it unless it is None."""

    def edit(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    return edit


def text(name: str, content: str | bytes) -> Edit:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def truncated(pattern: str) -> Edit:
    def edit(folder: Path) -> None:
        path = next(folder.glob(pattern))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return edit


def without(pattern: str) -> Edit:
    def edit(folder: Path) -> None:
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


def cell(key: str, column: str, value: Any, *, number: int = 0) -> Edit:
    """Sets the cell of a record in a JSON file FILE:KEY, or takes it out (`...`)."""
    name, _, key = key.partition(":")

    def change(content: Any) -> None:
        record = (content[key] if key else content)[number]
        record.pop(column) if value is ... else record.update({column: value})

    return json_edit(name, change)


def column(pattern: str, name: str, values: Any, kind: pa.DataType | None = None) -> Edit:
    """Replaces a column of parquet files by one value in all rows, or takes it out (`...`)."""

    def edit(folder: Path) -> None:
        for path in folder.glob(pattern):
            table = pq.read_table(path)
            place = table.schema.get_field_index(name)
            kind_now = kind or table.schema.field(name).type
            table = table.remove_column(place)
            if values is not ...:
                table = table.append_column(name, pa.array([values] * len(table), kind_now))
            pq.write_table(table, path)

    return edit


def no_rows(pattern: str) -> Edit:
    def edit(folder: Path) -> None:
        for path in folder.glob(pattern):
            pq.write_table(pq.read_table(path).slice(0, 0), path)

    return edit

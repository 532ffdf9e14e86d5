"""Rows of a published split: from the hub, from a folder of parquet files, or as plain records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from envs.spec import DataError

Row = Mapping[str, Any]


class Rows(Protocol):
    """A published split, in its own order."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns."""
        ...

    @property
    def folder(self) -> Path | None:
        """Folder that relative paths of pictures start from."""
        ...

    def __len__(self) -> int: ...

    def row(self, number: int) -> Row:
        """One row with all columns."""
        ...

    def values(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows with these columns alone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Rows in memory, such as those of a JSON file; keys may differ between rows."""

    records: Sequence[Row]
    folder: Path | None = None

    @property
    def columns(self) -> Sequence[str]:
        """The columns of the first row."""
        return list(self.records[0]) if self.records else []

    def __len__(self) -> int:
        return len(self.records)

    def row(self, number: int) -> Row:
        """See `Rows`."""
        return self.records[number]

    def values(self, columns: Sequence[str]) -> Iterator[Row]:
        """See `Rows`."""
        del columns
        return iter(self.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of the `datasets` library, memory-mapped from its cache; pictures stay encoded.

    Attributes:
        table: a `datasets.Dataset`.
        folder: folder that relative paths of pictures start from.
    """

    table: Any
    folder: Path | None = field(default=None)

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


def hub_rows(hub_id: str, configs: Sequence[str | None], split: str) -> Table:
    """A split from the Hugging Face hub or its local cache; no code of a repository is run.

    Args:
        hub_id: owner/name.
        configs: configurations, whose rows are joined in this order.
        split: published name of the split.

    Raises:
        DataError: the data set, the configuration or the split cannot be had.
    """
    datasets = _library()
    parts = []
    for config in configs:
        try:
            parts.append(datasets.load_dataset(hub_id, config, split=split))
        except Exception as error:  # the library raises many kinds
            name = f"{hub_id} ({config})" if config else hub_id
            raise DataError(
                f"split {split!r} of {name} cannot be loaded ({_first_line(error)}): check id, "
                "configuration and split, and HF_TOKEN if it is gated; without network, name a "
                "folder in worker.data.sources"
            ) from None
    return Table(table=_encoded(datasets.concatenate_datasets(parts)))


def parquet_rows(
    folder: Path, configs: Sequence[str | None], split: str, *, is_strict: bool = False
) -> Table:
    """A split from the parquet files of a folder, named as on the hub.

    A file belongs to the split if its name is that of the split, alone or followed by `-`, or if
    its folder's is. Of several configurations, each is a folder; without such folders all files of
    the split are taken, which must lie in one.

    Args:
        folder: root of the files.
        configs: configurations, whose rows are joined in this order.
        split: published name of the split.
        is_strict: every configuration must be there.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    datasets = _library()
    folders = [folder / config for config in configs if config and (folder / config).is_dir()]
    if is_strict and len(folders) < len(configs):
        raise DataError(
            f"{folder} lacks a configuration of {', '.join(map(str, configs))} (found "
            f"{_names(folder)}): name others in worker.data.configs"
        )
    files = [path for inside in folders or [folder] for path in split_files(inside, split)]
    if not folders and len({path.parent for path in files}) > 1:
        raise DataError(
            f"{folder} has split {split!r} in several configurations (found {_names(folder)}): "
            "name one in worker.data.configs"
        )
    if not files:
        found = sorted({_split_name(path) for path in folder.rglob("*.parquet")})
        raise DataError(
            f"{folder} has no parquet files of split {split!r} (found {', '.join(found)}): name "
            "the split in worker.data.splits"
        )
    try:
        table = datasets.Dataset.from_parquet([str(path) for path in _with_rows(files)])
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds
        raise DataError(
            f"{files[0].name} and the files beside it cannot be read together "
            f"({_first_line(error)}): download them again"
        ) from None
    return Table(table=_encoded(table), folder=folder)


def split_files(folder: Path, split: str) -> list[Path]:
    """The parquet files of a split below a folder, in order."""
    return [p for p in sorted(folder.rglob("*.parquet")) if _split_name(p) == split]


def _names(folder: Path) -> str:
    """The folders below a folder."""
    return ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"


def _split_name(path: Path) -> str:
    name = re.sub(r"-\d+-of-\d+.*$", "", path.stem)
    return path.parent.name if name.isdigit() else name


def _encoded(table: Any) -> Any:
    """The table with pictures as {bytes, path} instead of decoded ones."""
    datasets = _library()
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            "the `datasets` package is missing: pip install 'latency-budget-grpo[data]'"
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _with_rows(files: Sequence[Path]) -> list[Path]:
    """The files that have rows, which the library needs; raises DataError for a broken one."""
    from pyarrow import parquet

    counts = {}
    for path in files:
        try:
            counts[path] = parquet.read_metadata(path).num_rows
        except Exception as error:  # the library raises many kinds
            raise DataError(
                f"{path.name} cannot be read ({_first_line(error)}): download it again"
            ) from None
    if not any(counts.values()):
        raise DataError(f"{files[0].name} is empty: download it again, or name another split")
    return [path for path, num_rows in counts.items() if num_rows]


def _first_line(error: BaseException) -> str:
    """The first line of an error's message, or of the error that was its cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""Opens a data set: finds its published splits, and makes train, validation and test of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from envs.spec import DataError
from envs.tasks.scene import split_of
from envs.tasks.vqa.arrow_cache import ArrowCache, code_key, files_key
from envs.tasks.vqa.cells import reading
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.data_set import DataSet, Published
from envs.tasks.vqa.finding import PictureFolders, find_file, what_is_in
from envs.tasks.vqa.hub import hub_rows, parquet_files, parquet_rows
from envs.tasks.vqa.rows import Row, Rows, Stored
from envs.tasks.vqa.split import EMPTY, Split

HELD_OUT_WITHOUT_TRAINING = 0.3
"""Share that becomes validation and test where only one published split has answers."""

BATCH = 10_000
"""Rows that are converted at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a data set is.

    Attributes:
        kind: `hub`, `parquet` or `original`.
        places: hub ids of which one has it, or the one folder.
    """

    kind: str
    places: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The folder, unless it is the hub."""
        return Path(self.places[0]).expanduser()

    def __str__(self) -> str:
        return " or ".join(self.places)


def source_of(data_set: DataSet, config: DataConfig) -> Source:
    """Where the configuration says that a data set is, by default on the hub.

    Raises:
        DataError: there is no default, or no such folder.
    """
    given = config.sources.get(data_set.name) or str(config.own.get(data_set.name, ""))
    if not given and (data_set.name in config.sources or not data_set.hub_ids):
        raise DataError(
            f"{data_set.name} has no known repository of parquet files: name the folder of its "
            f"original distribution, --worker.data.sources {data_set.name} FOLDER"
        )
    if not given:
        return Source(kind="hub", places=data_set.hub_ids)
    folder = Path(given).expanduser()
    if folder.is_dir() and data_set.name in config.own:
        return Source(kind="original", places=(given,))
    if folder.is_dir():
        is_parquet = any(True for _ in parquet_files(folder))
        is_original = not is_parquet or _has_original(data_set, folder)
        return Source(kind="original" if is_original else "parquet", places=(given,))
    if folder.exists():
        raise DataError(f"{data_set.name}: {given} is a file: unpack it and name its folder")
    if given.startswith((".", "/", "~")) or data_set.name in config.own:
        raise DataError(f"{data_set.name}: the folder {given} does not exist")
    return Source(kind="hub", places=(given,))


def _has_original(data_set: DataSet, folder: Path) -> bool:
    """Whether the files of one of the original splits are there, next to parquet files."""
    known = data_set.in_original
    for split in filter(None, (known.train, known.validation, known.test) if known else ()):
        try:
            for names in data_set.files(split):
                find_file(folder, names, split)
            return True
        except DataError:
            continue
    return False


def open_splits(data_set: DataSet, config: DataConfig) -> dict[str, Split]:
    """Train, validation and test of a data set, without a picture in two of them.

    Raises:
        DataError: the source cannot be read, or lacks columns; says what was found.
    """
    source, cache = source_of(data_set, config), ArrowCache.at(config.cache)
    published = _published(data_set, config, source)
    names = dict.fromkeys((published.train, published.validation, published.test))
    parts = {name: _open(data_set, config, source, cache, name) for name in names if name}
    train, test = parts.get(published.train, EMPTY), parts.get(published.test, EMPTY)
    if published.validation or not published.is_divided:
        validation = parts.get(published.validation, EMPTY)
        splits = {"train": train, "validation": validation, "test": test}
    else:
        is_one = published.train in ("", published.test)
        splits = _divided(data_set, train, test, is_one=is_one)
    with reading(f"{data_set.name}: the split that training draws from"):
        data_set.opened(splits["train"], cache)
    return splits


def _divided(data_set: DataSet, train: Split, test: Split, *, is_one: bool) -> dict[str, Split]:
    """Takes validation from `train` by a hash of the pictures, or all three from `test`."""
    share = 2 * data_set.config.validation_share
    whole, held_out = (test, HELD_OUT_WITHOUT_TRAINING) if is_one else (train, share)
    keys = whole.names.to_pylist() if len(whole.codes) else []
    names = [data_set.name_of_picture(key) for key in keys]
    of_name = np.array([split_of(name, held_out=held_out) for name in names], dtype="U10")
    place = of_name[whole.codes] if len(names) else of_name
    validation = whole.where(place == "validation")
    if is_one:
        parts = {name: whole.where(place == name) for name in ("train", "test")}
        return {"train": parts["train"], "validation": validation, "test": parts["test"]}
    return {"train": whole.where(place != "validation"), "validation": validation, "test": test}


def _published(data_set: DataSet, config: DataConfig, source: Source) -> Published:
    known = data_set.in_original if source.kind == "original" else data_set.on_hub
    known = known or data_set.on_hub
    own, name = config.splits, data_set.name
    return replace(
        known,
        train=own.get(f"{name}/train", known.train),
        validation=own.get(f"{name}/validation", known.validation),
        test=own.get(f"{name}/test", known.test),
    )


def _open(
    data_set: DataSet, config: DataConfig, source: Source, cache: ArrowCache, split: str
) -> Split:
    with reading(f"{data_set.name}: split {split!r} of {source}"):
        if source.kind == "original":
            return _from_files(data_set, config, source.folder, cache, split)
        own = config.configs.get(data_set.name)
        configs = data_set.configs if own is None else (own or None,)
        if source.kind == "hub":
            rows, key, origin = hub_rows(source.places, configs, split)
        else:
            strict = {"configs": bool(own), "split": split in _named(data_set, config)}
            rows, key, origin = parquet_rows(source.folder, configs, split, strict=strict)
        _check_not_empty(rows)
        unfolded = data_set.one_row_per_question(rows)
        _check_columns(data_set, unfolded)
        key = _key(data_set, split, key)
        table = cache.table(f"{data_set.name}-keys", key, lambda: _keys(data_set, unfolded))
        return _split(unfolded, table, key, origin)


def _from_files(
    data_set: DataSet, config: DataConfig, folder: Path, cache: ArrowCache, split: str
) -> Split:
    """A split of an original distribution, converted once."""
    if data_set.in_original is None:
        raise DataError(
            "there are no parquet files, and the original distribution is not read; "
            f"{what_is_in(folder)}"
        )
    paths = [find_file(folder, names, f"split {split!r}") for names in data_set.files(split)]
    pictures = PictureFolders(
        root=Path(config.images.get(data_set.name, folder)).expanduser(),
        aliases=data_set.folder_aliases,
    )
    header = Stored(table=None, split=split, pictures=pictures, file=paths[0].name)
    key = _key(data_set, split, files_key(paths))
    name = f"{data_set.name}-rows"
    table = cache.table(name, key, lambda: _records(data_set, header, paths))
    rows = Stored(table=table, split=split, pictures=pictures, file=paths[0].name)
    _check_not_empty(rows)
    _check_columns(data_set, rows)
    return _split(rows, table, key, " and ".join(map(str, paths)))


def _named(data_set: DataSet, config: DataConfig) -> set[str]:
    """Published splits that the configuration names itself."""
    return {s for name, s in config.splits.items() if name.startswith(f"{data_set.name}/")}


def _key(data_set: DataSet, split: str, files: Iterable[Any]) -> tuple[Any, ...]:
    try:
        module_file = inspect.getsourcefile(type(data_set))
    except TypeError:  # defined outside of a file
        module_file = None
    return (code_key(module_file), data_set.name, split, *data_set.settings(), *files)


def _keys(data_set: DataSet, rows: Rows) -> Iterator[Any]:
    """Record batches of the pictures' keys, null for a row that does not belong."""
    import pyarrow as pa

    present = [name for name in data_set.key_columns if name in rows.columns]
    numbered = enumerate(rows.values(present))
    while batch := list(islice(numbered, BATCH)):
        keys = [_picture_key(data_set, row, rows, number) for number, row in batch]
        yield pa.record_batch({"key": pa.array(keys, pa.string())})


def _records(data_set: DataSet, header: Stored, paths: list[Path]) -> Iterator[Any]:
    """Record batches of the rows of files, as JSON texts, with their pictures' keys."""
    import pyarrow as pa

    is_empty = True
    numbered = enumerate(data_set.read(header.split, paths))
    while batch := list(islice(numbered, BATCH)):
        is_empty = False
        texts = [json.dumps(row, default=str) for _, row in batch]
        keys = [_picture_key(data_set, row, header, number) for number, row in batch]
        columns = {"record": pa.array(texts, pa.string()), "key": pa.array(keys, pa.string())}
        yield pa.record_batch(columns)
    if is_empty:
        raise DataError("it is empty: download it again, or name another split")


def _picture_key(data_set: DataSet, row: Row, rows: Rows, number: int) -> str | None:
    with reading(rows.place(number)):
        return data_set.picture_key(row, rows, number) if data_set.is_usable(row) else None


def _split(rows: Rows, table: Any, key: tuple[Any, ...], origin: str) -> Split:
    encoded = table["key"].combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy().astype(np.int32)
    numbers = np.flatnonzero(codes >= 0)
    return Split(
        rows=rows,
        numbers=numbers,
        codes=codes[numbers],
        names=encoded.dictionary,
        key=key,
        origin=origin,
    )


def _check_not_empty(rows: Rows) -> None:
    if not len(rows):
        raise DataError("it is empty: download it again, or name another split")


def _check_columns(data_set: DataSet, rows: Rows) -> None:
    missing = [names for names in data_set.columns if not set(names) & set(rows.columns)]
    if missing:
        expected = ", ".join(" or ".join(names) for names in missing)
        raise DataError(
            f"no column {expected} (found {', '.join(rows.columns)}): is it this data set, and a "
            "split with answers?"
        )

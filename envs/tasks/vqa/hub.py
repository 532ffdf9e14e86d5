"""Opens published splits as tables of the `datasets` library: from the hub, or parquet files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.spec import DataError
from envs.tasks.vqa.arrow_cache import files_key
from envs.tasks.vqa.finding import PictureFolders, walk
from envs.tasks.vqa.rows import Table

Opened = tuple[Table, Sequence[Any], str]
"""The rows, what they depend on, and where they come from in words."""

SAME_SPLIT = (("validation", "val", "val2014"), ("train", "train2014"))
"""Names that different copies give to the same split."""


def hub_rows(hub_ids: Sequence[str], configs: Sequence[str | None], split: str) -> Opened:
    """A split from the Hugging Face hub or its local cache; no code of a repository is run.

    Args:
        hub_ids: owner/name; the first one that can be loaded is taken.
        configs: configurations, whose rows are joined in this order.
        split: published name of the split.

    Raises:
        DataError: the data set, the configuration or the split cannot be loaded.
    """
    datasets = _library()
    problems = []
    for hub_id in hub_ids:
        try:
            parts = [datasets.load_dataset(hub_id, config, split=split) for config in configs]
        except Exception as error:  # the library raises many kinds
            named = f"{hub_id} ({configs[0]})" if configs[0] else hub_id
            problems.append(f"split {split!r} of {named} cannot be loaded ({_first_line(error)})")
            continue
        table = _encoded(datasets.concatenate_datasets(parts))
        key = [len(table), *(file["filename"] for file in table.cache_files)]
        return Table(table=table, split=split), key, f"{hub_id} on the hub, split {split!r}"
    raise DataError(
        f"{'; '.join(problems)}: check id, configuration and split, and HF_TOKEN if it is gated; "
        "without network, name a folder in worker.data.sources"
    )


def parquet_rows(
    folder: Path, configs: Sequence[str | None], split: str, *, strict: Mapping[str, bool]
) -> Opened:
    """A split from the parquet files of a folder, named as on the hub.

    A file belongs to the split if its name is that of the split, alone or followed by `-`, or if
    its folder's is. Of several configurations, each is a folder; without such folders all files of
    the split are taken, which must be in one folder.

    Args:
        folder: root of the files.
        configs: configurations, whose rows are joined in this order.
        split: published name of the split.
        strict: `configs`: every one must be there; `split`: no other copy's name is accepted.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    datasets = _library()
    folders = [folder / config for config in configs if config and (folder / config).is_dir()]
    if strict["configs"] and len(folders) < len(configs):
        raise DataError(
            f"{folder} lacks a configuration of {', '.join(map(str, configs))} (found "
            f"{_names(folder)}): name others in worker.data.configs"
        )
    found = {name for path in parquet_files(folder) if (name := _split_name(path))}
    name = split if strict["split"] else _present(split, found)
    files = [path for inside in folders or [folder] for path in split_files(inside, name)]
    if not folders and len({path.parent for path in files}) > 1:
        raise DataError(
            f"{folder} has split {name!r} in several configurations (found {_names(folder)}): "
            "name one in worker.data.configs"
        )
    if not files:
        raise DataError(
            f"{folder} has no parquet files of split {split!r} (found {', '.join(sorted(found))}; "
            f"because of {next(parquet_files(folder))} it is read as a folder of parquet files): "
            "name the split in worker.data.splits, or take files that do not belong out of it"
        )
    try:
        table = _encoded(datasets.Dataset.from_parquet([str(path) for path in _with_rows(files)]))
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds
        raise DataError(
            f"{files[0].name} and the files next to it cannot be read together "
            f"({_first_line(error)}): download them again"
        ) from None
    rows = Table(table=table, split=split, pictures=PictureFolders(root=folder))
    return rows, files_key(files), f"{folder}, split {name!r} in {len(files)} parquet files"


def parquet_files(folder: Path) -> Iterator[Path]:
    """The parquet files below a folder, in order."""
    found = [
        place / name
        for place, _, names in walk(folder)
        for name in names
        if name.lower().endswith(".parquet")
    ]
    return iter(sorted(found))


def split_files(folder: Path, split: str) -> list[Path]:
    """The parquet files of a split below a folder, in order."""
    return [path for path in parquet_files(folder) if _split_name(path) == split]


def _present(split: str, found: Collection[str]) -> str:
    """The split, or its name in this copy."""
    same = next((names for names in SAME_SPLIT if split in names), ())
    return next((name for name in (split, *same) if name in found), split)


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

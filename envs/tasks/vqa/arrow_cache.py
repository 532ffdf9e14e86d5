"""Arrow files that are made once and mapped by every process of every node that needs them.

A file is written under a temporary name and renamed when it is complete, so that nobody ever sees
part of one, even if two nodes make the same file at once or one is killed half-way. A lock only
saves the second node the work; without locks, both do it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import filelock
from huggingface_hub import constants

from envs.spec import DataError

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 900.0
"""How long to wait for another process that makes the same file, before making it as well."""

STALE_S = 3600.0
"""Age at which the process that wrote an unfinished file is assumed to be dead."""

PART = re.compile(r".+-[0-9a-f]{20}\.[0-9a-f]{32}\.part")
"""Names of unfinished files."""

NEVER_AGAIN = "not kept"
"""Part of a key whose file no other process can use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrowCache:
    """Arrow files by key.

    Attributes:
        folder: where they are; by default next to the `datasets` library's own files.
    """

    folder: Path

    @classmethod
    def at(cls, folder: Path | None) -> ArrowCache:
        """The cache in a folder, by default in that of the `datasets` library."""
        own = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
        return cls(folder=(folder or Path(own) / "latency_budget_grpo").expanduser())

    def table(self, name: str, key: Sequence[Any], make: Callable[[], Iterable[Any]]) -> Any:
        """The pyarrow table of this name and key, mapped from its file.

        Args:
            name: beginning of the file's name, for people.
            key: everything that the content depends on.
            make: makes the record batches, all of one schema, if the file is not there.

        Raises:
            DataError: the folder cannot be written, or `make` raises it.
        """
        pa = _pyarrow()
        path = self.folder / f"{name}-{_digest(key)}.arrow"
        _remove_stale(self.folder)
        table = _mapped(pa, path)
        if table is not None:
            return table
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _lock(path):
                table = _mapped(pa, path)  # another process may have made it meanwhile
                if table is None:
                    log.info("reading the files of %s, once", path.stem)
                    _write(pa, path, make())
                    table = _mapped(pa, path)
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot hold converted data sets ({error}): make room, or name "
                "another folder in worker.data.cache"
            ) from None
        if any(str(part).startswith(NEVER_AGAIN) for part in key):
            path.unlink(missing_ok=True)  # what is mapped stays readable
        if table is None:
            raise DataError(f"{path} cannot be read back after it was written: check the disk")
        return table


def files_key(paths: Iterable[Path]) -> list[Any]:
    """What distinguishes the present content of files from an earlier one: names, sizes, times."""
    found = [(path, path.stat()) for path in paths]
    return [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in found]


@cache
def code_key(module_file: str | None) -> str:
    """Identifies this version of the loaders, and of a module next to them.

    Args:
        module_file: file of the module that defines a data set; without one, nothing is kept.
    """
    if module_file is None or not Path(module_file).is_file():
        return f"{NEVER_AGAIN} {uuid.uuid4()}"
    files = sorted({*Path(__file__).parent.glob("*.py"), Path(module_file)})
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _digest(key: Sequence[Any]) -> str:
    return hashlib.sha256(repr(tuple(key)).encode()).hexdigest()[:20]


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            "the `pyarrow` package is missing: pip install 'latency-budget-grpo[data]'"
        ) from None
    return pyarrow


def _mapped(pa: Any, path: Path) -> Any:
    """The table in a file; None if there is no such file, or a damaged one."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("%s is damaged (%s) and is made again", path, error)
        return None


def _write(pa: Any, path: Path, batches: Iterable[Any]) -> None:
    """Writes the batches to a file of its own, and gives it its name when it is on the disk."""
    part = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            remaining = iter(batches)
            first = next(remaining)
            with pa.ipc.new_file(file, first.schema) as writer:
                writer.write_batch(first)
                for batch in remaining:
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Removes what processes left when they were killed while writing a file."""
    for part in folder.glob("*.part"):
        if not PART.fullmatch(part.name):
            continue
        try:
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink()
        except OSError:  # another process did it
            continue


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keeps other processes from making the same file meanwhile, if there are locks."""
    lock = filelock.FileLock(path.with_suffix(".lock"), fallback_to_soft=False)
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except (filelock.Timeout, NotImplementedError, OSError) as error:
        log.info("%s is made without a lock (%s)", path.name, error)
    try:
        yield
    finally:
        lock.release()

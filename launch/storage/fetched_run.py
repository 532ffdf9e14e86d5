"""A run to read from: a local folder as it is, one in an object store after a download.

What a download needs is imported for a download alone: it takes seconds.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from envs.price_curve import PRICE_CURVE_NAME
from launch.cluster.waiting import telling
from launch.storage.inputs import is_uri
from learner.manifest import MANIFEST_NAME

RESULT_ENDS = (".json", ".jsonl")
"""Files outside checkpoints that results are read from."""


def local_folder(run: str | Path) -> Path:
    """A local folder with a run's newest checkpoint, or with the one checkpoint that was named.

    A run's price curve is there as well, if the run has written one.

    What is downloaded is removed when the program ends; nothing is written to the store.

    Args:
        run: run folder or folder of a checkpoint, as a path or as a URI of an object store.

    Raises:
        ValueError: the URI cannot be used, or there is no checkpoint.
        StoreError: the store does not answer, or no checkpoint in it is whole.
    """
    text = str(run)
    return _fetched(text) if is_uri(text) else Path(text).expanduser()


def local_results(run: str | Path) -> Path:
    """A local folder with what a run wrote at its end, its metrics and its newest checkpoint.

    What is downloaded is removed when the program ends; nothing is written to the store.

    Raises:
        ValueError: the URI cannot be used, or there is no run.
        StoreError: the store does not answer.
    """
    text = str(run)
    return _fetched_results(text) if is_uri(text) else Path(text).expanduser()


def absolute_run(run: str) -> str:
    """The same run for a process with another working folder."""
    return run if is_uri(run) else str(Path(run).expanduser().absolute())


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fetched-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _fetched_results(uri: str) -> Path:
    from launch.storage.object_store import RunStore
    from launch.storage.remote_folder import RemoteFolder

    folder = _new_folder()
    with telling(f"the download of {uri}"):
        remote = RemoteFolder(uri)
        results = [name for name in remote.list() if name.endswith(RESULT_ENDS) and "/" not in name]
        for name in results:
            (folder / name).write_bytes(remote.get(name))
        if not RunStore(uri, folder).fetch_newest() and not results:
            raise ValueError(f"{uri} holds no run: give the --run-dir of a training run")
    return folder


@functools.cache
def _fetched(uri: str) -> Path:
    from launch.storage.object_store import RunStore
    from launch.storage.remote_folder import RemoteFolder

    folder = _new_folder()
    with telling(f"the download of {uri}"):
        remote = RemoteFolder(uri)
        files = remote.list()
        if MANIFEST_NAME in files:
            for name in files:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(remote.get(name))
        elif not RunStore(uri, folder).fetch_newest():
            raise ValueError(
                f"{uri} holds no checkpoint: give the folder of a run, or of one of its checkpoints"
            )
        elif PRICE_CURVE_NAME in files:
            (folder / PRICE_CURVE_NAME).write_bytes(remote.get(PRICE_CURVE_NAME))
    return folder

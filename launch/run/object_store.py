"""Run folders in an object store.

The run works in a local folder, which is mirrored in the store:

    LATEST                           name of the newest complete checkpoint, written last
    checkpoints/step_00000042-1a2b3c4d/   like the local one, manifest.json written last
    metrics.jsonl, tensorboard/ ...  every other file of the run folder

A remote checkpoint's name ends in a hash of its manifest, so that nothing is ever overwritten with
other content: if an upload is killed, the store holds either the old state or the new one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pyarrow.fs
from ray.train import Checkpoint

from learner.manifest import (
    MANIFEST_NAME,
    CheckpointError,
    Manifest,
    step_folders,
    verified_manifest,
)

logger = logging.getLogger(__name__)

LATEST = "LATEST"
"""Object that names the newest checkpoint; written after everything it names."""

CHECKPOINTS = "checkpoints"
REMOTE_CHECKPOINT = re.compile(r"(step_\d{8,})-[0-9a-f]{8}")
FETCHING_PREFIX = ".fetching_"
WRITABLE = ".writable"

ATTEMPTS = 3
FIRST_WAIT_S = 1.0
"""Wait before the second attempt; each further wait is twice as long."""

ATOMIC_STORES = ("s3", "gcs", "abfs")
"""Stores in which an object appears whole or not at all; elsewhere it is renamed into place."""

T = TypeVar("T")


def is_uri(run_dir: str) -> bool:
    """Whether a run folder lies in an object store."""
    return "://" in run_dir


def staging_folder(uri: str) -> Path:
    """The local folder of a run in an object store; the same on every start."""
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"joint-grpo-{digest}"


class StoreError(RuntimeError):
    """The object store failed repeatedly."""


class RemoteFolder:
    """A folder of an object store; every call is tried several times.

    Raises:
        ValueError: from the constructor, for a URI that cannot be used.
        StoreError: from every call, once all attempts have failed.
    """

    def __init__(self, uri: str) -> None:
        try:
            self.filesystem, path = pyarrow.fs.FileSystem.from_uri(uri.rstrip("/"))
        except (ValueError, OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{uri} cannot be used ({error})") from None
        self.uri, self.root = uri, path.rstrip("/")
        if not self.root:
            raise ValueError(f"{uri} names no bucket: give one, as in s3://bucket/run")

    def check_writable(self) -> None:
        """Raises ValueError if the folder cannot be written to."""
        try:
            self.put(WRITABLE, b"")
            self.filesystem.delete_file(f"{self.root}/{WRITABLE}")
        except (StoreError, OSError) as error:
            raise ValueError(
                f"--run-dir {self.uri} cannot be written to ({error}): check that the bucket "
                "exists, its endpoint and region, and your credentials"
            ) from None

    def list(self) -> set[str]:
        """Paths of all files, relative to the folder."""
        selector = pyarrow.fs.FileSelector(self.root, allow_not_found=True, recursive=True)
        found = self._retried("listing it", lambda: self.filesystem.get_file_info(selector))
        files = (info.path for info in found if info.type == pyarrow.fs.FileType.File)
        return {path.removeprefix(f"{self.root}/") for path in files}

    def get(self, name: str) -> bytes:
        """The content of a file."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(f"{self.root}/{name}") as stream:
                return stream.read()

        return self._retried(f"reading {name}", read)

    def put(self, name: str, content: bytes) -> None:
        """Writes a file, whole or not at all."""
        target = f"{self.root}/{name}"
        is_atomic = self.filesystem.type_name in ATOMIC_STORES

        def write() -> None:
            if is_atomic:
                with self.filesystem.open_output_stream(target) as stream:
                    stream.write(content)
                return
            folder, _, base = target.rpartition("/")
            self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(f"{folder}/.{base}.partial") as stream:
                stream.write(content)
            self.filesystem.move(f"{folder}/.{base}.partial", target)

        self._retried(f"writing {name}", write)

    def remove_folder(self, name: str) -> None:
        """Removes a folder with all that is in it."""
        path = f"{self.root}/{name}"
        self._retried(f"removing {name}", lambda: self.filesystem.delete_dir(path))

    def _retried(self, what: str, call: Callable[[], T]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except FileNotFoundError as error:
                raise StoreError(f"{what} failed: {error}") from None
            except (OSError, pyarrow.ArrowException) as error:
                if attempt == ATTEMPTS - 1:
                    message = f"{what} failed {ATTEMPTS} times: {error}"
                    raise StoreError(message) from None
            time.sleep(FIRST_WAIT_S * 2**attempt)
        raise AssertionError("unreachable")


class RunStore:
    """A run's folder in an object store, and its local copy.

    Methods may be called from one other thread than the run's own.

    Args:
        uri: URI of the run's folder.
        run_dir: local folder in which the run works.

    Attributes:
        num_failures: number of failed uploads so far; the next upload makes up for them.
    """

    def __init__(self, uri: str, run_dir: Path) -> None:
        self.remote = RemoteFolder(uri)
        self.uri, self.run_dir = uri, run_dir
        self.num_failures = 0
        self._sent: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    # -- before a run ----------------------------------------------------------------------------

    def fetch(self) -> None:
        """Downloads the newest and the best checkpoint, the metrics and all logs of the run.

        Nothing is downloaded if the local state is as new, for instance after a failed upload. The
        newest checkpoint comes last and is renamed into place: until then a restart downloads all.

        Raises:
            ValueError: the store cannot be written to.
            StoreError: the store cannot be read, or all of its checkpoints are damaged.
        """
        with self._lock:
            self.remote.check_writable()
            self._clear_remains()
            files = self.remote.list()
            local, remote = _local_step(self.run_dir), _remote_checkpoints(files)
            if remote and local >= max(map(_step_of, remote)):
                return
            newest = self._newest_whole(files)
            if newest is None or local >= newest[1].step:
                return
            name, manifest, contents = newest
            self._fetch_files(files)
            self._fetch_best(files, manifest)
            self._move_in(name, contents)

    def fetch_newest(self) -> bool:
        """Downloads the newest whole checkpoint alone, to read it; returns whether there is one."""
        newest = self._newest_whole(self.remote.list())
        if newest is not None:
            self._move_in(newest[0], newest[2])
        return newest is not None

    def _newest_whole(self, files: set[str]) -> tuple[str, Manifest, dict[str, bytes]] | None:
        """The checkpoint that LATEST names, or the newest intact one if that is damaged."""
        names = sorted(_remote_checkpoints(files), reverse=True)
        if LATEST in files:
            latest = self.remote.get(LATEST).decode(errors="replace").strip()
            names = [latest, *(name for name in names if name != latest)]
        for name in names:
            try:
                return name, *self._read_checkpoint(name)
            except (CheckpointError, StoreError) as error:
                logger.warning("skipping %s in %s: %s", name, self.uri, error)
        if LATEST in files:
            raise StoreError(
                f"none of the {len(names)} checkpoints in {self.uri} is whole (see the warnings "
                "before this): restore one, or start in another folder"
            )
        return None

    def _read_checkpoint(self, name: str) -> tuple[Manifest, dict[str, bytes]]:
        folder = f"{CHECKPOINTS}/{name}"
        content = self.remote.get(f"{folder}/{MANIFEST_NAME}")
        manifest = Manifest.parse(content, f"{self.uri}: {folder}")
        contents = {file: self.remote.get(f"{folder}/{file}") for file in manifest.files}
        manifest.check(contents, f"{self.uri}: {folder}")
        return manifest, {**contents, MANIFEST_NAME: content}

    def _fetch_files(self, files: set[str]) -> None:
        for name in sorted(files):
            if name == LATEST or not _is_mirrored(Path(name)):
                continue
            target = self.run_dir / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{FETCHING_PREFIX}{target.name}")
            temporary.write_bytes(self.remote.get(name))
            os.replace(temporary, target)
            self._sent[name] = _signature(target)

    def _fetch_best(self, files: set[str], newest: Manifest) -> None:
        """Downloads the checkpoint with the highest metric, unless it is the newest one."""
        rated = []
        for name in _remote_checkpoints(files):
            try:
                content = self.remote.get(f"{CHECKPOINTS}/{name}/{MANIFEST_NAME}")
                manifest = Manifest.parse(content, name)
            except (CheckpointError, StoreError):
                continue  # uploaded in part, and never named by LATEST
            if manifest.metric is not None:
                rated.append((manifest.metric, manifest.step, name))
        for _, step, name in sorted(rated, reverse=True):
            if step == newest.step:
                return
            try:
                self._move_in(name, self._read_checkpoint(name)[1])
                return
            except (CheckpointError, StoreError) as error:
                logger.warning("skipping %s, the best so far: %s", name, error)

    def _move_in(self, name: str, contents: dict[str, bytes]) -> None:
        folder = self.run_dir / CHECKPOINTS / name.partition("-")[0]
        temporary = folder.with_name(f"{FETCHING_PREFIX}{folder.name}")
        temporary.mkdir(parents=True)
        for file, content in contents.items():
            (temporary / file).write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)

    def _clear_remains(self) -> None:
        """Removes the remains of a download that was killed."""
        for path in self.run_dir.rglob(f"{FETCHING_PREFIX}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    # -- during and after it ---------------------------------------------------------------------

    def mirror(self, checkpoint: Path) -> Checkpoint | None:
        """Uploads a checkpoint and the run's other files; then points LATEST at it.

        A failure is logged and counted, and the run continues: the next call makes up for it.

        Args:
            checkpoint: RUN_DIR/checkpoints/step_NNNNNNNN.

        Returns:
            The remote checkpoint; None if the upload failed or the local one was deleted.
        """
        with self._lock:
            try:
                return self._mirror(checkpoint)
            except FileNotFoundError:
                logger.info("%s was deleted before it was uploaded", checkpoint.name)
            except (StoreError, CheckpointError) as error:
                self.num_failures += 1
                logger.warning(
                    "%s could not be copied to %s (%s): the run continues, and the next upload "
                    "makes up for it; the local copy is in %s",
                    *(checkpoint.name, self.uri, error, checkpoint),
                )
            return None

    def mirror_results(self) -> bool:
        """Uploads everything that is missing, such as the last evaluation and the curves.

        Returns:
            Whether the store now holds the whole run; a warning says what is missing.
        """
        folders = step_folders(self.run_dir / CHECKPOINTS)
        return bool(folders) and self.mirror(folders[-1]) is not None

    def _mirror(self, checkpoint: Path) -> Checkpoint:
        remote_files = self.remote.list()
        name = self._upload(checkpoint, remote_files)
        self._upload_files()
        self.remote.put(LATEST, name.encode())
        kept = {name}
        for folder in step_folders(self.run_dir / CHECKPOINTS):
            try:
                kept.add(self._upload(folder, remote_files))
            except (FileNotFoundError, CheckpointError):
                continue  # deleted meanwhile, or damaged: not to be relied on
        self._drop_old(_remote_checkpoints(remote_files) - kept)
        return Checkpoint(
            f"{self.remote.root}/{CHECKPOINTS}/{name}", filesystem=self.remote.filesystem
        )

    def _drop_old(self, names: set[str]) -> None:
        """Deletes checkpoints that are gone locally; LATEST names a newer one by now."""
        for name in sorted(names):
            try:
                self.remote.remove_folder(f"{CHECKPOINTS}/{name}")
            except StoreError as error:
                logger.warning("%s could not be removed from %s: %s", name, self.uri, error)

    def _upload(self, checkpoint: Path, remote_files: set[str]) -> str:
        """Uploads a checkpoint unless it is there, manifest last; returns its remote name."""
        content = (checkpoint / MANIFEST_NAME).read_bytes()
        name = f"{checkpoint.name}-{hashlib.sha256(content).hexdigest()[:8]}"
        if f"{CHECKPOINTS}/{name}/{MANIFEST_NAME}" in remote_files:
            return name
        manifest = Manifest.parse(content, str(checkpoint))
        contents = {file: (checkpoint / file).read_bytes() for file in manifest.files}
        manifest.check(contents, str(checkpoint))
        for file, data in {**contents, MANIFEST_NAME: content}.items():
            self.remote.put(f"{CHECKPOINTS}/{name}/{file}", data)
        return name

    def _upload_files(self) -> None:
        """Uploads all files outside the checkpoints that changed since the last upload."""
        for path in sorted(self.run_dir.rglob("*")):
            relative = path.relative_to(self.run_dir)
            if not _is_mirrored(relative):
                continue
            try:
                signature = _signature(path)
                if not path.is_file() or self._sent.get(str(relative)) == signature:
                    continue
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # another process's temporary file
            self.remote.put(relative.as_posix(), content)
            self._sent[str(relative)] = signature


def _signature(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_mirrored(relative: Path) -> bool:
    """Whether a file is mirrored: neither part of a checkpoint nor temporary."""
    is_hidden = any(part.startswith(".") for part in relative.parts)
    return not is_hidden and relative.parts[0] != CHECKPOINTS and relative.suffix != ".partial"


def _remote_checkpoints(files: Iterable[str]) -> set[str]:
    """Names of the remote checkpoints, complete or not."""
    parts = (Path(name).parts for name in files)
    found = {p[1] for p in parts if len(p) > 2 and p[0] == CHECKPOINTS}
    return {name for name in found if REMOTE_CHECKPOINT.fullmatch(name)}


def _step_of(remote_name: str) -> int:
    return int(remote_name.removeprefix("step_").partition("-")[0])


def _local_step(run_dir: Path) -> int:
    """Step of the newest intact local checkpoint, -1 if there is none."""
    for folder in reversed(step_folders(run_dir / CHECKPOINTS)):
        try:
            return verified_manifest(folder).step
        except CheckpointError as error:
            logger.warning("skipping %s: %s", folder, error)
    return -1

"""Checkpoints as they lie in an object store: their names, and how one is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launch.storage.remote_folder import RemoteFolder
from learner.archive import ARCHIVE_NAME, Archive, check
from learner.checkpoint import CHECKPOINTS_NAME
from learner.manifest import MANIFEST_NAME, Manifest, step_of

CHECKPOINTS = CHECKPOINTS_NAME
ARCHIVE = f"{CHECKPOINTS}/{ARCHIVE_NAME}"
REMOTE_CHECKPOINT = re.compile(r"(step_\d{8,})-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredCheckpoint:
    """A checkpoint that was downloaded and verified.

    Attributes:
        name: its remote name.
        manifest: its manifest.
        files: contents of the files of its folder, the manifest included.
        archive: what was downloaded of what it needs from the archive.
    """

    name: str
    manifest: Manifest
    files: Mapping[str, bytes]
    archive: Archive

    @classmethod
    def read(
        cls, remote: RemoteFolder, name: str, lacking: Callable[[Iterable[str]], Iterable[str]]
    ) -> Self:
        """Downloads a checkpoint.

        Args:
            remote: the run's folder.
            name: name of the checkpoint there.
            lacking: given what it needs from the archive, what of that is to be downloaded.

        Raises:
            StoreError: it cannot be read.
            CheckpointError, ArchiveError: it is damaged.
        """
        folder = f"{CHECKPOINTS}/{name}"
        content = remote.get(f"{folder}/{MANIFEST_NAME}")
        manifest = Manifest.parse(content, f"{remote.uri}: {folder}")
        contents = {file: remote.get(f"{folder}/{file}") for file in manifest.files}
        manifest.check(contents, f"{remote.uri}: {folder}")
        parts = lacking(manifest.archive)
        archive = {part: remote.get(f"{ARCHIVE}/{part}") for part in parts}
        for part in archive:
            check(part, archive[part], f"{remote.uri}/{ARCHIVE}")
        files = {**contents, MANIFEST_NAME: content}
        return cls(name=name, manifest=manifest, files=files, archive=archive)


def remote_checkpoints(files: Iterable[str]) -> set[str]:
    """Names of the remote checkpoints, complete or not."""
    parts = (Path(name).parts for name in files)
    found = {p[1] for p in parts if len(p) > 2 and p[0] == CHECKPOINTS}
    return {name for name in found if REMOTE_CHECKPOINT.fullmatch(name)}


def remote_name(checkpoint: Path, manifest: bytes) -> str:
    """The remote name of a local checkpoint, by its folder and its manifest's content."""
    return f"step_{step_of(checkpoint):08d}-{hashlib.sha256(manifest).hexdigest()[:8]}"


def manifest_of(name: str) -> str:
    """Path of a remote checkpoint's manifest."""
    return f"{CHECKPOINTS}/{name}/{MANIFEST_NAME}"


def remote_step(name: str) -> int:
    """The step in a remote checkpoint's name."""
    return int(name.removeprefix("step_").partition("-")[0])

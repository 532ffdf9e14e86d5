"""The manifest of a checkpoint: its files and their hashes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from learner import archive, folders
from policy import serialization

LEARNER_NAME = "learner.pt"
STATE_NAME = "state.json"
MANIFEST_NAME = "manifest.json"
FILE_NAMES = (serialization.JSON_NAME, serialization.WEIGHTS_NAME, LEARNER_NAME, STATE_NAME)
"""The files that a manifest lists."""

STEP_FOLDER = re.compile(r"step_(\d{8,})")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or no valid one could be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of a checkpoint.

    Attributes:
        step: step of the run.
        metric: evaluation of the controller.
        files: sha256 of each file.
        archive: names of the files in the archive that the learner's state needs.
    """

    step: int
    metric: float | None
    files: Mapping[str, str]
    archive: tuple[str, ...]

    def __post_init__(self) -> None:
        if not is_count(self.step):
            raise ValueError(f"step is {self.step!r}")
        if self.metric is not None and not math.isfinite(self.metric):
            raise ValueError(f"metric is {self.metric!r}")
        for name in FILE_NAMES:
            if name not in self.files:
                raise ValueError(f"it does not list {name}")
        strange = [name for name in self.files if name not in FILE_NAMES]
        if strange:
            raise ValueError(f"it lists {strange[0]!r}")
        unnamed = [name for name in self.archive if not archive.NAME.fullmatch(name)]
        if unnamed:
            raise ValueError(f"its archive lists {unnamed[0]!r}")

    def to_bytes(self) -> bytes:
        """The manifest as JSON."""
        fields = {
            "step": self.step,
            "metric": self.metric,
            "files": dict(self.files),
            "archive": list(self.archive),
        }
        return (json.dumps(fields, indent=2) + "\n").encode()

    @classmethod
    def parse(cls, content: bytes, folder: Path | str) -> Self:
        """Reads what `to_bytes` wrote; raises CheckpointError naming a damaged folder."""
        try:
            fields = json.loads(content)
            return cls(
                step=fields["step"],
                metric=fields["metric"],
                files=dict(fields["files"]),
                archive=tuple(fields.get("archive", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: {MANIFEST_NAME} cannot be used: {error!r}") from error

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the manifest of a folder; raises CheckpointError if it is absent or damaged."""
        try:
            content = (folder / MANIFEST_NAME).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / MANIFEST_NAME} cannot be read: {error}") from error
        return cls.parse(content, folder)

    def check(self, contents: Mapping[str, bytes], folder: Path | str) -> None:
        """Raises CheckpointError naming the first file whose content differs from its hash."""
        for name, sha256 in self.files.items():
            if sha256_of(contents[name]) != sha256:
                raise CheckpointError(
                    f"{folder}/{name} is torn or corrupt: its {len(contents[name])} bytes do not "
                    "have the manifest's hash"
                )


def verified_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, with all files verified; raises CheckpointError."""
    manifest = Manifest.read(folder)
    manifest.check(read_files(folder, manifest), folder)
    return manifest


def step_folders(root: Path) -> list[Path]:
    """Checkpoint folders in ascending order, intact or not; none if `root` is absent.

    One that a killed process had set aside, and not yet replaced, is among them under that name.
    """
    found = [path for path in root.glob("step_*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted([*found, *folders.set_aside(root, "step_*")], key=step_of)


def step_of(folder: Path) -> int:
    """The step in the name of one of `step_folders`."""
    return int(folder.name.removeprefix(folders.REPLACED_PREFIX).removeprefix("step_"))


def read_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Contents of all listed files; raises CheckpointError naming a missing one."""
    try:
        return {name: (folder / name).read_bytes() for name in manifest.files}
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error}") from error


def is_count(value: Any) -> bool:
    """Whether a value is a non-negative integer, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def sha256_of(content: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(content).hexdigest()

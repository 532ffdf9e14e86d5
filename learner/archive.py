"""Parts of a learner's state that never change once they are made, under the hash of their content.

Remembered groups, a profile and the initial weights are most of the state. The rest of it names
them, so that each is shipped, written and uploaded once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from learner import folders

if TYPE_CHECKING:
    from torch import Tensor

Archive = Mapping[str, bytes]
"""Contents by name."""

ARCHIVE_NAME = "archive"
"""Name of an archive's folder among a run's checkpoints."""

NAME = re.compile(r"[0-9a-f]{32}")


class ArchiveError(RuntimeError):
    """A part of the archive is absent or damaged."""


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the content of a safetensors file; equal tensors give equal bytes."""
    import safetensors.torch  # slow to import, and not needed by who only reads manifests

    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(own)


def unpacked(content: bytes) -> dict[str, Tensor]:
    """The tensors that were packed."""
    import safetensors.torch

    return safetensors.torch.load(content)


def name_of(content: bytes) -> str:
    """The name of a content in an archive: the first half of its sha256."""
    return hashlib.sha256(content).hexdigest()[:32]


class ArchiveFolder:
    """An archive in a folder: a file appears whole, and is never changed.

    Args:
        path: the folder, made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lacks(self, names: Iterable[str]) -> list[str]:
        """Those of these names that have no file."""
        return [name for name in names if not (self.path / name).is_file()]

    def damaged(self, names: Iterable[str]) -> list[str]:
        """Those of these names whose file is absent or damaged; reads all of them."""
        found = []
        for name in names:
            try:
                self.read(name)
            except ArchiveError:
                found.append(name)
        return found

    def write(self, archive: Archive, *, again: bool = False) -> None:
        """Writes what is not there yet, or all of it; an OSError leaves nothing half written."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in archive if again else self.lacks(archive):
            folders.write_whole(self.path / name, archive[name])
        folders.sync(self.path)

    def read(self, name: str) -> bytes:
        """Reads one content; raises ArchiveError if it is absent or damaged."""
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise ArchiveError(f"{self.path / name} cannot be read: {error}") from error
        check(name, content, self.path)
        return content

    def keep(self, names: Collection[str]) -> None:
        """Deletes everything else."""
        for path in self.path.glob("*"):
            if path.name not in names:
                path.unlink(missing_ok=True)


def check(name: str, content: bytes, where: Path | str) -> None:
    """Raises ArchiveError if a content has another name than its own."""
    if name_of(content) != name:
        raise ArchiveError(f"{where}/{name} is torn or corrupt: its content has another hash")

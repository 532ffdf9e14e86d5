"""Folders that are created, replaced and removed whole, even if the process is killed meanwhile.

A folder is prepared under a temporary name next to its place and renamed. One that is replaced is
set aside first, because a folder cannot be renamed onto another: between the two renames it is
found where it was set aside. One that is removed is renamed before its files go, so that no torn
folder keeps its name.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".writing_"
REPLACED_PREFIX = ".replaced_"
REMOVED_PREFIX = ".removing_"


def temporary_of(folder: Path) -> Path:
    """Where a folder's new content is prepared."""
    return folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")


def move_in(folder: Path) -> None:
    """Puts what was prepared in its place; an older folder there is removed only afterwards.

    Raises:
        OSError: it could not be renamed; the older folder is back in its place.
    """
    replaced = folder.with_name(f"{REPLACED_PREFIX}{folder.name}")
    if folder.exists():
        os.rename(folder, replaced)
    try:
        os.rename(temporary_of(folder), folder)
    except OSError:
        if replaced.exists():
            os.rename(replaced, folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes a folder; being killed meanwhile leaves no torn folder under its name.

    A folder that cannot be removed stays whole, with a warning.
    """
    removed = folder.with_name(f"{REMOVED_PREFIX}{folder.name}")
    shutil.rmtree(removed, ignore_errors=True)
    try:
        os.rename(folder, removed)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s could not be removed: %s", folder, error)
        return
    shutil.rmtree(removed, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all; raises OSError."""
    temporary = temporary_of(path)
    try:
        write_synced(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a file and waits until it is on the disk; raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Waits until the names in a folder are on the disk; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(root: Path, pattern: str) -> list[Path]:
    """Folders that a killed process had set aside and not yet replaced."""
    found = root.glob(f"{REPLACED_PREFIX}{pattern}")
    return [path for path in found if not _place_of(path).exists()]


def clear_remains(root: Path, pattern: str) -> None:
    """Puts back what a killed process had set aside, and removes what it left unfinished.

    Only the owner of the folder may call this: it would remove what another process is preparing.
    """
    for path in set_aside(root, pattern):
        os.rename(path, _place_of(path))
    for prefix in (TEMPORARY_PREFIX, REPLACED_PREFIX, REMOVED_PREFIX):
        for path in root.glob(f"{prefix}{pattern}"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _place_of(replaced: Path) -> Path:
    return replaced.with_name(replaced.name.removeprefix(REPLACED_PREFIX))

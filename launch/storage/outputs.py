"""Folders and files for results, checked before the work whose results they take."""

from __future__ import annotations

import tempfile
from pathlib import Path


def writable_folder(folder: Path, option: str) -> Path:
    """Creates a folder and writes to it.

    Args:
        folder: where results will go.
        option: the option that names it, for the message.

    Returns:
        The folder.

    Raises:
        ValueError: results cannot be written there; says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"{option} {folder} cannot be written to ({reason}): give another folder"
        ) from None
    return folder


def writable_file(path: Path, option: str) -> Path:
    """The same for a single file; one that exists is not changed.

    Raises:
        ValueError: it cannot be written; says why.
    """
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: give the name of a file")
    writable_folder(path.parent, f"{option} {path}: the folder")
    return path

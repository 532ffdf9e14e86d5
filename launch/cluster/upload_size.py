"""What `ray job submit --working-dir` uploads: everything that no ignore file excludes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

_silent = logging.getLogger("launch.cluster.upload_size.ray")
_silent.disabled = True

NEVER_UPLOADED = (".git", ".venv", "venv", "__pycache__")
"""Names that Ray leaves out by default."""

NUM_NAMED = 5
"""Number of files that are named when an upload is too large."""


def uploaded_files(folder: Path) -> dict[Path, int]:
    """Sizes in bytes of the files that would be uploaded, by their path within the folder."""
    return {path.relative_to(folder): size for path, size in _walk(folder, [])}


def largest(files: dict[Path, int]) -> str:
    """The largest files in words, such as `a/b.bin (3 MB), c (1 MB)`."""
    by_size = sorted(files.items(), key=lambda item: -item[1])[:NUM_NAMED]
    by_size = [item for item in by_size if item[1] >= 5e5] or by_size[:1]
    return ", ".join(f"{path} ({size / 1e6:.0f} MB)" for path, size in by_size)


def _walk(folder: Path, rules: list[Callable[[Path], bool]]) -> Iterator[tuple[Path, int]]:
    """The files of a folder, by the ignore files of the folders around it and its own."""
    takes_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1"
    rules = [*rules, *get_excludes_from_ignore_files(folder, takes_gitignore, _silent)]
    for path in sorted(folder.iterdir()):
        try:
            if path.name in NEVER_UPLOADED or any(is_ignored(path) for is_ignored in rules):
                continue
            if path.is_dir():
                yield from _walk(path, rules)
            elif path.is_file():
                yield path, path.stat().st_size
        except OSError:
            continue  # it may be gone by now

"""Where a run keeps its results."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path

JOB_FOLDER = "working_dir_files"
"""Part of the path of a Ray job's working folder, which is deleted when the job ends."""


def resolve_run_dir(run_dir: str) -> Path:
    """The absolute run folder; raises ValueError for one that would be deleted with the job."""
    cwd = Path.cwd()
    if not run_dir and JOB_FOLDER in cwd.parts:
        raise ValueError(
            "inside a Ray job give an absolute --run-dir: the job's working folder does not last"
        )
    path = Path(run_dir) if run_dir else cwd / "runs" / time.strftime("%Y%m%d-%H%M%S")
    path = path.expanduser()
    if not path.is_absolute() and JOB_FOLDER in cwd.parts:
        raise ValueError(f"--run-dir {run_dir} is relative, inside a Ray job: give an absolute one")
    path = path.absolute()
    if JOB_FOLDER in path.parts:
        raise ValueError(
            f"--run-dir {path} is inside the job's temporary working folder and would be lost: "
            "give a folder outside it"
        )
    return path


def claimed(path: Path) -> Path:
    """Creates a new folder of this name, or with a number if another run has taken the name.

    Of two runs that start in the same second each gets its own.
    """
    numbered = (path.with_name(f"{path.name}-{number}") for number in range(2, 1000))
    for candidate in (path, *numbered):
        with contextlib.suppress(FileExistsError):
            candidate.mkdir(parents=True)
            return candidate
    raise RuntimeError(f"{path.parent} holds a thousand runs of this second: give a --run-dir")


def staging_folder(uri: str) -> Path:
    """The local folder of a run in an object store; the same on every start.

    Raises:
        ValueError: the folder for all of them is somebody else's, or open to others.
    """
    private = Path(tempfile.gettempdir()) / f"joint-grpo-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        private.mkdir(mode=0o700)
    status = private.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ValueError(
            f"{private} is not a folder that only you can use: remove it, or set TMPDIR to a "
            "folder of your own"
        )
    return private / hashlib.sha256(uri.encode()).hexdigest()[:16]

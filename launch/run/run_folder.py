"""Where a run keeps its results."""

from __future__ import annotations

import contextlib
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
    path = Path(run_dir) if run_dir else new_folder(cwd / "runs")
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


def new_folder(parent: Path) -> Path:
    """A new folder named after the present second, with a number if another run took that name.

    It is created here, so that of two runs that start at once each gets its own.
    """
    name = time.strftime("%Y%m%d-%H%M%S")
    for path in (parent / name, *(parent / f"{name}-{number}" for number in range(2, 1000))):
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise RuntimeError(f"{parent} holds a thousand runs of this second: give a --run-dir")

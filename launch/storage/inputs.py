"""Files and folders to read from, looked for before anything slow is imported."""

from __future__ import annotations

from pathlib import Path


def is_uri(run_dir: str) -> bool:
    """Whether a run folder lies in an object store."""
    return "://" in run_dir


def check_run(run: str | None, option: str) -> None:
    """Raises ValueError unless this is a folder or, unseen, a URI.

    Args:
        run: the folder of a run or of a checkpoint; None stands for no run.
        option: the option that names it, for the message.
    """
    if run is None or is_uri(run):
        return
    path = Path(run).expanduser()
    if not path.is_dir():
        wrong = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"{option} {run} {wrong}: give the folder of a training run")


def check_file(path: Path | None, option: str) -> None:
    """Raises ValueError unless this is a file; None stands for no file."""
    if path is not None and not path.is_file():
        wrong = "is a folder" if path.exists() else "does not exist"
        raise ValueError(f"{option} {path} {wrong}: give a file")

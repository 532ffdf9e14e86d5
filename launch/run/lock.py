"""One run folder, one run: a lock that the operating system gives back when its process dies."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Self

import filelock

LOCK_NAME = ".run.lock"
HOLDER_NAME = ".run.holder"
"""Who holds the lock, for people."""


class RunLock:
    """Keeps a second run out of a run folder; a context manager.

    Between machines it is as good as the locks of the file system that they share.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._lock = filelock.FileLock(run_dir / LOCK_NAME)

    def acquire(self) -> None:
        """Takes the lock; the folder is made if absent.

        Raises:
            RuntimeError: another run holds it; the message names its host and process.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            with contextlib.suppress(OSError):
                holder = (self.run_dir / HOLDER_NAME).read_text(encoding="utf-8").strip()
                raise RuntimeError(
                    f"{self.run_dir} is in use by {holder}: stop that run first, or use another "
                    "--run-dir"
                ) from None
            raise RuntimeError(f"{self.run_dir} is in use: use another --run-dir") from None
        holder = f"process {os.getpid()} on {platform.node()}\n"
        (self.run_dir / HOLDER_NAME).write_text(holder, encoding="utf-8")

    def release(self) -> None:
        """Gives the lock back; a folder in which nothing was written goes too."""
        names = {path.name for path in self.run_dir.iterdir()}
        (self.run_dir / HOLDER_NAME).unlink(missing_ok=True)
        if names <= {LOCK_NAME, HOLDER_NAME}:
            (self.run_dir / LOCK_NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.run_dir.rmdir()
        self._lock.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

"""The lock of a run folder; the operating system releases it when its process dies."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Self

import filelock

LOCK_NAME = ".run.lock"
HOLDER_NAME = ".run.holder"
"""File that says who holds the lock."""


class RunLock:
    """A context manager that keeps a second run out of a run folder.

    Between machines it relies on the locks of the shared file system.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._lock = filelock.FileLock(run_dir / LOCK_NAME, fallback_to_soft=False)

    def acquire(self) -> None:
        """Takes the lock; creates the folder if it is absent.

        Raises:
            RuntimeError: another run holds it (the message names its host and process), or the
                file system has no locks.
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
        except OSError as error:
            raise RuntimeError(
                f"{self.run_dir} cannot be locked against a second run: its file system has no "
                f"locks ({error.strerror}); mount it with locks, or use another --run-dir"
            ) from None
        holder = f"process {os.getpid()} on {platform.node()}\n"
        (self.run_dir / HOLDER_NAME).write_text(holder, encoding="utf-8")

    def release(self) -> None:
        """Releases the lock, and removes a folder in which nothing was written."""
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

"""One run folder, one run: a lock with host and process, taken over from the dead."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

logger = logging.getLogger(__name__)

LOCK_NAME = ".run.lock"
HEARTBEAT_S = 15.0
STALE_AFTER_S = 120.0
"""Silence after which a lock of another machine counts as left behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: the machine's name, for people.
        machine: tells boots and process namespaces apart; processes are compared within one only.
        pid: of the process.
        started: when it did, in the kernel's ticks since boot: ids are used again.
        token: of this very acquisition.
    """

    host: str
    machine: str
    pid: int
    started: int | None
    token: str

    @classmethod
    def this_process(cls) -> Self:
        """A holder that is this process."""
        return cls(
            host=platform.node(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            token=secrets.token_hex(8),
        )

    def is_running(self) -> bool | None:
        """Whether its process is; None if it cannot be seen from here."""
        if (self.host, self.machine) != (platform.node(), _machine()):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return _started(self.pid) == self.started


class RunLock:
    """Keeps a second run out of a run folder; a context manager.

    A lock whose process is gone is taken over, and so is one of another machine that has been
    silent for `STALE_AFTER_S`. The holder touches its lock every `HEARTBEAT_S`.

    Attributes:
        is_lost: the lock was taken over by another run, because this one was silent for long.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOCK_NAME
        self.is_lost = False
        self._own: Holder | None = None
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Takes the lock; the folder is made if absent.

        Raises:
            RuntimeError: another run holds it; the message names its host and process.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        own = Holder.this_process()
        while not self._create(own):
            self._clear_stale()
        self._own, self.is_lost = own, False
        self._released.clear()
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Gives the lock back; nothing happens if it is not held."""
        if self._own is None:
            return
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        if _read(self.path) == self._own:
            self.path.unlink(missing_ok=True)
        self._own = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _create(self, own: Holder) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(own)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return True

    def _clear_stale(self) -> None:
        """Removes a lock that was left behind; raises RuntimeError if its run still goes on."""
        holder, silent_s = _read(self.path), self._silent_s()
        if silent_s is None:
            return
        is_running = holder.is_running() if holder is not None else None
        if is_running or (is_running is None and silent_s < STALE_AFTER_S):
            raise RuntimeError(_refusal(self.path, holder, is_running))
        # Renamed first: if another run took the lock over meanwhile, it gets its own back.
        aside = self.path.with_name(f"{LOCK_NAME}.{secrets.token_hex(8)}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if _read(aside) != holder:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
        elif holder is not None:
            logger.warning(
                "taking over %s from process %d on %s, which is gone",
                *(self.path.parent, holder.pid, holder.host),
            )
        aside.unlink()

    def _silent_s(self) -> float | None:
        """Seconds since the last heartbeat, by the file system's own clock; None if it is gone."""
        probe = self.path.with_name(f"{LOCK_NAME}.{secrets.token_hex(8)}")
        try:
            probe.touch()
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                if _read(self.path) != self._own:
                    self.is_lost = True
                    logger.error("%s was taken by another run: stop one of the two", self.path)
                    return
                os.utime(self.path)
            except OSError as error:
                logger.warning("%s could not be kept fresh: %s", self.path, error)


def _refusal(path: Path, holder: Holder | None, is_running: bool | None) -> str:
    where = path.parent
    if holder is None:
        return f"{where} is being taken by another run at this moment: use another --run-dir"
    who = f"process {holder.pid} on {holder.host}"
    if is_running:
        return f"{where} is in use by {who}: stop that run first, or use another --run-dir"
    return (
        f"{where} is in use by {who}: stop that run first, or use another --run-dir; if that "
        f"machine is gone, the folder is free {STALE_AFTER_S:.0f} s after its last sign of life"
    )


def _read(path: Path) -> Holder | None:
    """The holder in a lock file, None if the file is absent or not (yet) whole."""
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
        return Holder(**fields)
    except (OSError, ValueError, TypeError):
        return None


def _machine() -> str:
    """Boot and process namespace; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Start time of a process in ticks since boot; None if it, or /proc, is absent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything, spaces and parentheses too.
    return int(fields.rpartition(")")[2].split()[19])

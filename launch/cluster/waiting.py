"""Waits that have a limit, and say what they wait for."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

SAY_EVERY_S = 10.0
"""How often a wait says what it waits for."""


class Waiting:
    """The wait of a loop: when it is over, and when it is time to say what it waits for.

    Args:
        limit_s: time limit in seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._started = self._last_said = time.monotonic()

    def is_over(self) -> bool:
        """Whether the limit has been reached."""
        return time.monotonic() - self._started >= self.limit_s

    def renew(self) -> None:
        """The limit begins anew."""
        self._started = time.monotonic()

    def progressed(self) -> None:
        """Something was done, so that nothing need be said for a while."""
        self._last_said = time.monotonic()

    def say(self, what: Callable[[], str], *, at_once: bool = False) -> None:
        """Logs what is waited for, if nothing was said or done for ten seconds."""
        now = time.monotonic()
        if at_once or now - self._last_said >= SAY_EVERY_S:
            self._last_said = now
            waited_s = now - self._started
            log.info("waiting for %s (%.0f of %.0f s)", what(), waited_s, self.limit_s)


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Says every ten seconds what a call that blocks is waiting for; the call has its own limit."""
    done, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(SAY_EVERY_S):
            log.info("waiting for %s (%.0f s so far)", what, time.monotonic() - started)

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()

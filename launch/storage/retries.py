"""A call to an object store is tried several times before it counts as failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow

ATTEMPTS = 3
FIRST_WAIT_S = 1.0
"""Wait before the second attempt; each further wait is twice as long."""

T = TypeVar("T")


class StoreError(RuntimeError):
    """The object store failed repeatedly."""


class Outage:
    """A time in which every call fails, on purpose: see `launch.cluster.faults`."""

    def __init__(self) -> None:
        self._until = 0.0

    def begin(self, seconds: float) -> None:
        """All calls fail for so long."""
        self._until = time.monotonic() + seconds

    def check(self) -> None:
        """Raises OSError during the outage."""
        if time.monotonic() < self._until:
            raise OSError("an outage on purpose")


OUTAGE = Outage()
"""Of this process."""


def retried(what: str, call: Callable[[], T]) -> T:
    """Calls until it succeeds; what does not exist is not asked for again.

    Args:
        what: what the call does, for the error.
        call: the call.

    Raises:
        StoreError: all attempts have failed.
    """
    for attempt in range(ATTEMPTS):
        try:
            OUTAGE.check()
            return call()
        except FileNotFoundError as error:
            raise StoreError(f"{what} failed: {error}") from None
        except (OSError, pyarrow.ArrowException) as error:
            if attempt == ATTEMPTS - 1:
                raise StoreError(f"{what} failed {ATTEMPTS} times: {error}") from None
        time.sleep(FIRST_WAIT_S * 2**attempt)
    raise AssertionError("unreachable")

"""SIGTERM and Ctrl-C: how a program, or a run, is asked to stop.

Programs import this before anything slow, so it needs only the standard library.
"""

import logging
import os
import signal
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a program that Ctrl-C stopped, as in shells."""

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that was asked to stop."""


class Stopped(Exception):
    """The run was asked to stop; the caller of the loop writes a checkpoint."""


class StopSignals:
    """Remembers SIGTERM and Ctrl-C, so that a run can stop between two steps.

    Args:
        consequence: what follows from them, for the log.
    """

    def __init__(self, consequence: str = "stopping with a checkpoint") -> None:
        self._is_set = False
        self._consequence = consequence

    def listen(self) -> None:
        """Takes both signals from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def is_set(self) -> bool:
        """Whether one of them has come."""
        return self._is_set

    def _take(self, number: int, _frame: FrameType | None) -> None:
        logging.warning("%s: %s", signal.Signals(number).name, self._consequence)
        self._is_set = True


def stop_quietly() -> None:
    """Makes Ctrl-C end the program with one line until `console.one_clear_error` takes over."""
    signal.signal(signal.SIGINT, _exit_at_once)


def _exit_at_once(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)

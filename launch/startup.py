"""What a program does before its slow imports."""

import os
import signal
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a program that was stopped by Ctrl-C, as shells have it."""


def stop_quietly() -> None:
    """Ctrl-C ends the program with one line; `one_clear_error` takes over from here."""
    signal.signal(signal.SIGINT, _stop)


def _stop(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)

"""Shared by all programs: one-line errors, logs, wide tables."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from launch.cluster.signals import INTERRUPTED, TERMINATED, Stopped
from launch.cluster.usage import USAGE_ERROR

BROKEN_PIPE = 128 + signal.SIGPIPE
"""Exit code of a program whose reader, such as `head`, has closed the pipe."""

DEBUG_VARIABLE = "LBG_DEBUG"
"""Environment variable that shows the traceback of an error that is otherwise one line."""

ESCAPE_CODE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\))")
"""Terminals' escape codes: colours and the like, and titles and links."""


def one_clear_error(command: Callable[[], int], failed: int = 1) -> int:
    """Runs a command and returns its exit code.

    A failure prints one line and returns `failed`, Ctrl-C prints one line and returns 130; a closed
    pipe ends the program silently. With LBG_DEBUG=1 the line comes after its traceback.
    """
    set_up_logs()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except Stopped:
        logging.warning("stopped before the first step: there was nothing new to save")
        return TERMINATED
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Otherwise the interpreter would flush the rest, fail, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, RuntimeError, TimeoutError, OSError) as error:
        if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
            print(plain(traceback.format_exc()), file=sys.stderr)
        line = printable(plain(f"error: {error}"))
        Console(stderr=True, soft_wrap=True).print(line, style="red", markup=False)
        return failed


def check_first(command_line: Callable[[], object]) -> None:
    """Ends the program after `--help` or a mistake, before it imports what takes seconds.

    Args:
        command_line: reads and checks the command line. It is read again by the program itself.

    Raises:
        SystemExit: with 0 after the help, with USAGE_ERROR after one line about a mistake.
    """

    def read() -> int:
        command_line()
        return 0

    if code := one_clear_error(read, USAGE_ERROR):
        sys.exit(code)


def set_up_logs() -> None:
    """Sends log messages to the standard output: in colour to a terminal, else one line each."""
    handler: logging.Handler
    if sys.stdout.isatty():
        handler = RichHandler(show_path=False)
    else:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if not sys.stderr.isatty():
        # Progress bars of downloads, which go back to the start of their line.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


class PlainFormatter(logging.Formatter):
    """Log messages without the escape codes that Ray puts into its tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """The message as plain text."""
        return plain(super().format(record))


def plain(text: str) -> str:
    """A text without terminals' escape codes and carriage returns."""
    return ESCAPE_CODE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def logs_to_stderr() -> None:
    """Keeps log messages out of the standard output of a program whose results are read there."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RichHandler):
            handler.console = Console(stderr=True)
        elif isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)


def printable(text: str) -> str:
    """Escapes what no terminal can show, such as stray bytes of a file name."""
    return text.encode(errors="backslashreplace").decode()


def check_local_paths(config: Any, prefix: str = "") -> None:
    """Raises ValueError for the first option that takes a local path and was given a URI.

    Args:
        config: a config dataclass, nested ones included, as the command line gave it.
        prefix: names the config that holds this one.
    """
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            check_local_paths(value, f"{option}.")
            continue
        several = value.values() if isinstance(value, Mapping) else [value]
        for path in several:
            # A Path has lost one of the two slashes.
            if isinstance(path, Path) and re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
                raise ValueError(f"--{option} {path} is a URI: copy it here and give a local path")


TABLE_WIDTH = 150
"""Width of wide tables in characters if the terminal is narrower or the output is a file."""


def wide_console() -> Console:
    """A console wide enough for tables of many columns."""
    return Console(width=max(Console().width, TABLE_WIDTH))

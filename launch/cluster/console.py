"""Shared by all programs: one-line errors, logs, wide tables."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from rich.console import Console
from rich.logging import RichHandler

from envs.checks import nearest
from launch.cluster.signals import INTERRUPTED, TERMINATED, Stopped

BROKEN_PIPE = 128 + signal.SIGPIPE
"""Exit code of a program whose reader, such as `head`, has closed the pipe."""

DEBUG_VARIABLE = "LBG_DEBUG"
"""Environment variable that shows the traceback of an error that is otherwise one line."""

ESCAPE_CODE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\))")
"""Terminals' escape codes: colours and the like, and titles and links."""


def one_clear_error(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code.

    A user's mistake prints one line and returns 1, Ctrl-C prints one line and returns 130; a closed
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
        return 1


def answer_help(command_line: Callable[[], object]) -> None:
    """Answers `--help`, which ends the program, before it imports what takes seconds.

    Args:
        command_line: reads the command line, and so prints the help.
    """
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):

        def show() -> int:
            command_line()
            return 0

        sys.exit(one_clear_error(show))


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


def refuse_unknown_options(arguments: Sequence[str], config: type) -> None:
    """Raises ValueError for the first unknown option, with the closest known one."""
    known = ["--help", *_option_names(config)]
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            close = nearest(name, known)
            hint = f": did you mean {close}?" if close else ": --help lists them all"
            raise ValueError(f"there is no option {name}{hint}")


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


def _option_names(config: type, prefix: str = "") -> Iterator[str]:
    """The options that tyro makes of a config class, nested ones included."""
    for name, kind in get_type_hints(config).items():
        option = name.replace("_", "-")
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _option_names(kind, f"{prefix}{option}.")
        else:
            yield from (f"--{prefix}{option}", f"--{prefix}no-{option}")


TABLE_WIDTH = 150
"""Width of wide tables in characters if the terminal is narrower or the output is a file."""


def wide_console() -> Console:
    """A console wide enough for tables of many columns."""
    return Console(width=max(Console().width, TABLE_WIDTH))

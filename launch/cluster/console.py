"""Shared by all programs: one-line errors, wide tables, connecting to Ray."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, get_type_hints

from rich.console import Console
from rich.logging import RichHandler

from launch.cluster.signals import INTERRUPTED

BROKEN_PIPE = 128 + signal.SIGPIPE
"""Exit code of a program whose reader, such as `head`, has closed the pipe."""


def one_clear_error(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code.

    A user's mistake prints one line and returns 1, Ctrl-C prints one line and returns 130; a closed
    pipe ends the program silently.
    """
    handler = RichHandler(show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Otherwise the interpreter would flush the rest, fail, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, RuntimeError, TimeoutError, OSError) as error:
        line = printable(f"error: {error}")
        Console(stderr=True, soft_wrap=True).print(line, style="red", markup=False)
        return 1


def logs_to_stderr() -> None:
    """Keeps log messages out of the standard output of a program whose results are read there."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RichHandler):
            handler.console = Console(stderr=True)


def printable(text: str) -> str:
    """Escapes what no terminal can show, such as stray bytes of a file name."""
    return text.encode(errors="backslashreplace").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to a misspelt one; empty if none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def refuse_unknown_options(arguments: Sequence[str], config: type) -> None:
    """Raises ValueError for the first unknown option, with the closest known one."""
    known = ["--help", *_option_names(config)]
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            close = nearest(name, known)
            hint = f": did you mean {close}?" if close else ": --help lists them all"
            raise ValueError(f"there is no option {name}{hint}")


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


def connect(address: str) -> None:
    """Joins the cluster at an address or in RAY_ADDRESS, or starts a local one."""
    import ray  # takes a second, and some programs never need it

    target = address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if target is None:
        options |= {"include_dashboard": False}
    try:
        ray.init(address=target, **options)
    except ConnectionError as error:
        raise RuntimeError(
            f"no Ray cluster at {target} ({error}): start one with `ray start --head`, or leave "
            "the address out for a local one"
        ) from None

"""A mistake on the command line as one line: a log would break the box that tyro draws."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from envs.checks import did_you_mean, nearest

USAGE_ERROR = 2
"""Exit code, as of other programs that do not understand their options."""

WIDE = "1000"
"""Columns of a box in which nothing is wrapped."""

T = TypeVar("T")


def options_from(read: Callable[[], T]) -> T:
    """Reads a command line with tyro.

    Args:
        read: calls `tyro.cli`; it is called again after a mistake.

    Raises:
        SystemExit: after `--help`, or with USAGE_ERROR after one line that says what is wrong.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return read()
    except SystemExit as ended:
        if ended.code != USAGE_ERROR:
            sys.stderr.write(box.getvalue())
            raise
    box = io.StringIO()
    with _columns(WIDE), contextlib.redirect_stderr(box), contextlib.suppress(SystemExit):
        return read()
    print(f"error: {as_line(box.getvalue(), sys.argv[1:])}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


def as_line(box: str, arguments: Sequence[str] = ()) -> str:
    """The message in tyro's box, with what may have been meant.

    Args:
        box: what tyro printed.
        arguments: the command line. Tyro does not see that one of them may be a missing option
            that was misspelt.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    rows = [row.strip("│ ") for row in plain if row.startswith(("│", " "))]
    parts: list[list[str]] = [[]]
    for row in filter(None, rows):
        if row.strip("─-"):
            parts[-1].append(row)
        else:
            parts.append([])
    if not any(row.startswith("│") for row in plain):
        parts = parts[1:]  # where the output is not in Unicode, the title is a part of its own
    message = re.sub(r"^Error parsing (?!--)(\S+): ", _place, " ".join(parts[0]))
    others = " ".join(row for part in parts[1:] for row in part)
    suggested = re.search(r"Perhaps you meant:? +(--[\w.-]+)", others)
    hint = f"; did you mean {suggested[1]}?" if suggested else _meant(message, arguments)
    return f"{_in_words(message)}{hint} (--help lists all options)"


def _in_words(message: str) -> str:
    """The message; of what tyro does not recognise, it names the options, or else everything."""
    if not (unknown := re.match(r"Unrecognized options?: (.*)", message)):
        return message
    names = re.findall(r"(?:^|, )(--[\w.-]+)", unknown[1])
    if names:
        return f"there is no option {' or '.join(names)}"
    return f"no option takes what is given as {unknown[1]}"


def _meant(message: str, arguments: Sequence[str]) -> str:
    """The nearest of the choices for a value, or the missing option that an argument is near."""
    if choice := re.match(r"invalid choice '(.*?)' .*Expected one of (.*)", message):
        return did_you_mean(choice[1], re.findall(r"'(.*?)'", choice[2]))
    missing = re.findall(r"--[\w.-]+", message) if message.startswith("Missing") else []
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for name in given:
        if name not in missing and (close := nearest(name, missing)):
            return f"; instead of {name}, did you mean {close}?"
    return ""


def _place(named: re.Match[str]) -> str:
    """The group of options in place of tyro's path to it, which begins with a class."""
    _, *path = named[1].split(".")
    return f"--{'.'.join(path).replace('_', '-')}: " if path else ""


@contextlib.contextmanager
def _columns(number: str) -> Iterator[None]:
    """Sets the width that tyro takes the terminal for."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = number
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before

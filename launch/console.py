"""What every command shares: one clear error, wide tables, the way to a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import ray
from rich.console import Console
from rich.logging import RichHandler


def one_clear_error(command: Callable[[], int]) -> int:
    """Runs a command; a user's mistake becomes one line and exit code 1."""
    handler = RichHandler(show_path=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        return command()
    except (ValueError, RuntimeError, TimeoutError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        return 1


TABLE_WIDTH = 150
"""Columns of wide tables where the terminal is narrower, or the output is a file."""


def wide_console() -> Console:
    """A console whose tables keep their columns."""
    return Console(width=max(Console().width, TABLE_WIDTH))


def connect(address: str) -> None:
    """Joins the cluster of an address or job, or starts a local one."""
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

"""The one command line of all benchmarks and studies: options from a dataclass, and `--quick`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

import tyro

from launch.cluster.usage import options_from


class Options(Protocol):
    """A frozen dataclass with defaults for all fields."""

    @property
    def quick(self) -> bool:
        """Whether tiny sizes are the defaults, to see within a minute that the program runs."""
        ...


AnyOptions = TypeVar("AnyOptions", bound=Options)


def read_options(quick: AnyOptions, description: str | None) -> AnyOptions:
    """Reads the command line.

    Args:
        quick: defaults with `--quick`; without it they are those of the fields.
        description: text of `--help`.
    """
    assert quick.quick, "these are the defaults with --quick"
    kind = type(quick)
    options = options_from(lambda: tyro.cli(kind, description=description))
    if not options.quick:
        return options
    return options_from(lambda: tyro.cli(kind, default=quick, description=description))


def needed(path: Path | None, name: str) -> Path:
    """An input that is needed except with `--quick`; raises ValueError if it is absent."""
    if path is None:
        raise ValueError(f"{name} is needed: name it, or try the program with --quick")
    return path

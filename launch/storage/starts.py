"""A run's starts: one line for each time that its driver began, in RUN/starts.jsonl."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from launch.cluster.versions import git_revision, package_versions, python_version

STARTS_NAME = "starts.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a run's driver.

    Attributes:
        began_at: date and time, UTC.
        command: the command line.
        first_step: number of steps that were done before it; above 0 the run was resumed.
        num_actors: number of rollout actors.
        device: what `rollout.latency.clock.DeviceFacts` say of the first actor.
        python: version of Python.
        packages: versions of packages by name.
        git_revision: commit of this project.
    """

    began_at: str
    command: str
    first_step: int
    num_actors: int
    device: Mapping[str, Any]
    python: str
    packages: Mapping[str, str]
    git_revision: str

    @classmethod
    def now(cls, first_step: int, num_actors: int, device: Mapping[str, Any]) -> Self:
        """The start of this process."""
        return cls(
            began_at=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            command=command_line(sys.argv),
            first_step=first_step,
            num_actors=num_actors,
            device=dict(device),
            python=python_version(),
            packages=package_versions(),
            git_revision=git_revision(),
        )

    def append_to(self, run_dir: Path) -> None:
        """Adds a line to the run's file."""
        with (run_dir / STARTS_NAME).open("a") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def read_starts(run_dir: Path) -> list[Start]:
    """All starts of a run; a torn line, as a full disk leaves it, is skipped.

    Raises:
        OSError: there is no such file.
        ValueError: it holds no whole line.
    """
    found = []
    for line in (run_dir / STARTS_NAME).read_text().splitlines():
        try:
            found.append(Start(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    if not found:
        raise ValueError(f"{run_dir / STARTS_NAME} holds no whole line")
    return found


def command_line(arguments: list[str]) -> str:
    """What was typed: a program by its place in the project, a console script by its name."""
    program = Path(arguments[0])
    is_file = program.suffix == ".py"
    name = f"python launch/{program.name}" if is_file else program.name
    return " ".join([name, *map(shlex.quote, arguments[1:])])

"""Writes a run as one page: verdict, curves, answers, machine and configuration.

    python launch/report.py RUN [RUN ...] [--out FILE]

With several runs the page shows their curves in one chart, the differences of their accuracies on
common samples, and only those settings that differ. Every run writes the page of its own when it
ends.
"""

import sys

from launch.cluster.signals import stop_quietly

if __name__ == "__main__":
    stop_quietly()

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from launch.cluster.console import check_first, check_local_paths
from launch.cluster.usage import options_from
from launch.storage.inputs import check_run, is_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What to report on.

    Attributes:
        runs: folders of training runs, as paths or URIs.
        out: the HTML file; by default report.html in the folder of the run, or in the working
            folder for several runs or one in an object store.
    """

    runs: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)"),
    ]
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("no run is named: give the folder of a training run")

    def file(self) -> Path:
        """Where the page goes."""
        if self.out is not None:
            return self.out
        is_local = len(self.runs) == 1 and not is_uri(self.runs[0])
        return (local_results(self.runs[0]) if is_local else Path.cwd()) / REPORT_NAME


def command_line() -> ReportConfig:
    """Reads the command line."""
    config = options_from(lambda: tyro.cli(ReportConfig, prog="report.py", description=__doc__))
    check_local_paths(config)
    for run in config.runs:
        check_run(run, "RUN")
    return config


if __name__ == "__main__":
    check_first(command_line)  # before the imports that take seconds

from collections.abc import Sequence

from rich.console import Console

from launch.cluster.console import one_clear_error
from launch.run_report.page import REPORT_NAME, write_report
from launch.run_report.record import read_run
from launch.storage.fetched_run import local_results
from launch.storage.outputs import writable_file


def names_of(runs: Sequence[str]) -> list[str]:
    """A name for each run: the last part of its path, or as many parts as tell them apart."""
    paths = [
        run.rstrip("/").split("/") if is_uri(run) else Path(run).expanduser().absolute().parts
        for run in runs
    ]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ValueError("a run is named twice: name each once")


def main() -> int:
    """Reads the runs and writes the page."""
    config = command_line()
    names = names_of(config.runs)
    folders = [local_results(run) for run in config.runs]
    records = [read_run(f, name) for f, name in zip(folders, names, strict=True)]
    path = write_report(records, writable_file(config.file(), "--out"))
    Console(soft_wrap=True, highlight=False).print(f"report {path}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

"""Every benchmark runs through with --quick, and prints what it measured.

`benchmarks.gpu` is run in test_gpu.py, as a process that lacks what a machine with a GPU may lack.
"""

from pathlib import Path

import pytest

import benchmarks
from tests.quick import run_quick

DEFAULT = {
    "budget_row": "with the row",
    "clock": "next to busy loops",
    "goodput": "best fixed one in hindsight",
    "gpu.dispatches": "fixed shape, graphs",
    "load": "",
    "loading": "samples/s",
    "moe": "plain loop",
    "request_overhead": "beyond the episode",
    "scoring": "times as many as by episodes",
    "whole_model": "published flow",
}
SLOW = {
    "data_sets": "all, mixed",
    "drift": "scatter of log milliseconds",
    "episodes": "weights in the stages",
    "full_size": "peak resident",
    "loop": "actors busy",
    "versions": "0 answers differ",
}
"""By program: a part of what it prints."""

LIBRARIES = {"__init__", "goodput_report", "options", "published_flow", "random_model"}


@pytest.mark.parametrize(
    ("name", "printed"),
    [*DEFAULT.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())],
)
def test_it_runs_through(name, printed, monkeypatch, capfd):
    run_quick(f"benchmarks.{name}", monkeypatch)
    assert printed in capfd.readouterr().out


def test_no_program_is_left_out():
    folder = Path(next(iter(benchmarks.__path__)))
    assert {path.stem for path in folder.glob("*.py")} - LIBRARIES == {
        name for name in (*DEFAULT, *SLOW) if "." not in name
    }

"""The one command line of benchmarks and studies."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.options import needed, read_options


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Two sizes."""

    quick: bool = False
    rounds: int = 50
    layers: int = 16


QUICK = Sizes(quick=True, rounds=2, layers=1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Sizes()),
        (["--rounds", "7"], Sizes(rounds=7)),
        (["--quick"], QUICK),
        (["--quick", "--rounds", "7"], Sizes(quick=True, rounds=7, layers=1)),
    ],
)
def test_quick_changes_the_defaults_alone(arguments, expected, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    assert read_options(QUICK, None) == expected


def test_a_mistake_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["program", "--round", "7"])
    with pytest.raises(SystemExit) as ended:
        read_options(QUICK, None)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_absent_input_is_named():
    assert needed(Path("runs/a"), "RUN") == Path("runs/a")
    with pytest.raises(ValueError, match="RUN is needed: name it, or try the program with --quick"):
        needed(None, "RUN")

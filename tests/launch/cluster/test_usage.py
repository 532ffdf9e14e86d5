"""Mistakes on the command line are one line."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from envs.checks import check_within
from launch.cluster.usage import as_line, options_from


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a program takes.

    Attributes:
        folder: where results go.
        steps: number of steps.
    """

    folder: Path
    steps: int = 3

    def __post_init__(self) -> None:
        check_within(self, "steps", low=1)


def read(*arguments):
    return options_from(lambda: tyro.cli(Options, args=arguments, prog="program.py"))


LONG = "/" + "a" * 200


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("--folder", "x", "--stpes", "5"),
            "error: there is no option --stpes; did you mean --steps? (",
        ),
        (("--folder", "x", "--abc", "--defg=1"), "there is no option --abc or --defg"),
        (("--folder", "x", "--steps", "-5"), "steps is -5: give a finite number of at least 1"),
        (("--folder", "x", "--steps", "ten"), "--steps"),
        ((), "--folder"),
        (("--folder", "x", LONG), f"no option takes what is given as {LONG} ("),
    ],
)
def test_a_mistake_is_one_line_however_long(capsys, arguments, expected):
    with pytest.raises(SystemExit) as ended:
        read(*arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("(--help lists all options)")
    assert expected in line
    assert not set(line) & set("│╭╮╰╯─\x1b\r")


def test_both_of_tyros_boxes_are_understood():
    drawn = (
        "╭─ Title ─╮\n│ a is b │\n│ and c  │\n│ ────── │\n│ Perhaps you meant: │\n│ --d │\n╰───╯\n"
    )
    plain = " Title\n -----\n  a is b \n  and c\n ----\n  Perhaps you meant:\n   --d\n"
    for box in (drawn, plain):
        assert as_line(box) == "a is b and c; did you mean --d? (--help lists all options)"


def test_a_missing_option_may_be_one_that_was_misspelt():
    box = "╭─ Title ─╮\n│ Missing from x.py: --folder │\n╰───╯\n"
    assert "; instead of --foldr, did you mean --folder? (" in as_line(box, ["--foldr=x"])
    assert "did you mean" not in as_line(box, ["--steps", "3"])


def test_help_and_good_options_are_as_they_were(capsys):
    assert read("--folder", "x") == Options(folder=Path("x"))
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0
    assert "number of steps" in capsys.readouterr().out

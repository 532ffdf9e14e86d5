"""The words for what curves say: a table and a verdict, on curves worked out by hand."""

import io

import numpy as np
import pytest
from rich.console import Console

from launch.analysis.tradeoff import Curve
from launch.analysis.tradeoff_report import tradeoff_table, verdict


def certain(*points, violation=0.0, samples=4):
    """A curve through (ms, accuracy) at prices 0, 0.1, ..., the same on all samples."""
    time_P1, accuracy_P1 = np.array(points).T[:, :, None]
    return Curve(
        prices=tuple(np.arange(len(points)) / 10),
        accuracy_PS=accuracy_P1.repeat(samples, 1),
        time_ms_PS=time_P1.repeat(samples, 1),
        violation_P=np.full(len(points), violation),
    )


def scored(scores, time_ms):
    """A single point with 0/1 scores."""
    return Curve(
        prices=(0.0,),
        accuracy_PS=np.array([scores], float),
        time_ms_PS=np.full((1, len(scores)), float(time_ms)),
        violation_P=np.zeros(1),
    )


OURS = certain((40, 0.8), (20, 0.4), violation=0.011)


def rows_of(curves):
    """The cells of each row, by the policy's name."""
    table = tradeoff_table(curves)
    out = io.StringIO()
    Console(file=out, width=250).print(table)
    lines = [line.strip()[1:-1] for line in out.getvalue().splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    return {row[0]: row[1:] for row in cells}, out.getvalue()


def test_one_row_per_policy():
    rows, text = rows_of(
        {
            "controller": OURS,
            "lookup table": certain((60, 0.9), (50, 0.6), (30, 0.4), violation=0.02),
            "best static configuration": certain((30, 0.5)),
            "nothing but speed": certain((10, 0.2), violation=np.nan),
            "out of reach": certain((90, 0.95)),
        }
    )
    assert "accuracy at price 0" in text
    assert rows["controller"] == ["0.800", "", "", "", "1.1%"]
    assert rows["lookup table"] == [
        "0.900",
        "-0.100 ± 0.000",
        "0.63 (0.63 to 0.63) at 2 of 3 prices",
        "+0.100 ± 0.000",
        "2.0%",
    ]
    assert rows["best static configuration"] == [
        "0.500",
        "+0.300 ± 0.000",
        "0.83 (0.83 to 0.83)",
        "+0.100 ± 0.000",
        "0.0%",
    ]
    assert rows["nothing but speed"][2:] == ["2.00 (2.00 to 2.00)", "not reached", ""]
    assert rows["out of reach"][2:] == ["not reached", "-0.150 ± 0.000", "0.0%"]


def test_the_controller_alone_is_a_table():
    rows, _ = rows_of({"controller": certain((40, 0.8))})
    assert rows["controller"] == ["0.800", "", "", "", "0.0%"]


def test_a_gain_over_the_most_accurate_rival():
    said = verdict(
        {
            "controller": OURS,
            "best static configuration": certain((30, 0.5)),
            "lookup table": certain((50, 0.7), (30, 0.4)),
        }
    )
    # .7 at 35 of 50 ms, .4 at 20 of 30 ms; .8 - .7 in 50 ms, .6 - .4 in 30 ms
    assert said == (
        "At the accuracies of the lookup table, the controller needs 0.68 (0.68 to 0.68) of its "
        "device time: a gain. In the same device time, its accuracy within budget is higher by "
        "0.150 ± 0.000: a gain."
    )


def test_a_loss_as_far_as_the_curve_reaches():
    said = verdict({"controller": OURS, "lookup table": certain((36, 0.9), (24, 0.8), (10, 0.6))})
    # .8 at 40 of 24 ms, .6 at 30 of 10 ms; .72 - .9 in 36 ms, .48 - .8 in 24 ms, 10 ms not enough
    assert said == (
        "At the accuracies of the lookup table (2 of 3 prices, as far as its curve reaches), the "
        "controller needs 2.24 (2.24 to 2.24) of its device time: a loss. In the same device time "
        "(2 of 3 prices, as far as its curve reaches), its accuracy within budget is lower by "
        "0.250 ± 0.000: a loss."
    )


def test_what_chance_explains_is_no_gain():
    """Both are right three times of four, on different samples, in the same time."""
    said = verdict(
        {"controller": scored([1, 1, 1, 0], 20), "lookup table": scored([0, 1, 1, 1], 20)}
    )
    assert said.count("no gain could be shown.") == 2
    assert "a gain" not in said
    assert "At the accuracy of the lookup table, the controller needs 1.00 (1.00 or more)" in said
    assert "its accuracy within budget differs by +0.000 ± 0." in said


def test_what_is_not_reached_is_said():
    out_of_reach = verdict({"controller": OURS, "oracle": certain((40, 0.9))})
    assert out_of_reach.startswith(
        "The controller does not reach the accuracy of the oracle at any"
    )
    assert out_of_reach.endswith("lower by 0.100 ± 0.000: a loss.")
    too_fast = verdict({"controller": OURS, "cheapest": certain((10, 0.2))})
    assert too_fast.endswith("as little device time as that, so accuracies are not compared.")


def test_a_verdict_needs_a_rival():
    with pytest.raises(ValueError, match="evaluate at least one"):
        verdict({"controller": OURS})

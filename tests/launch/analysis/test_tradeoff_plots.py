"""The figure of curves: what it draws, on curves worked out by hand."""

import io

import numpy as np
import pytest

from launch.analysis.tradeoff import Curve
from launch.analysis.tradeoff_plots import ORACLE, tradeoff_figure

PRICES = (0.0, 0.02, 0.1, 1.0)


def curve(points, violations, prices=PRICES):
    """A curve through (ms, accuracy), on five samples."""
    time_P1, accuracy_P1 = np.array(points).T[:, :, None]
    return Curve(
        prices=prices,
        accuracy_PS=accuracy_P1 + np.linspace(-0.1, 0.1, 5),
        time_ms_PS=time_P1.repeat(5, 1),
        violation_P=np.array(violations),
    )


CURVES = {
    "controller": curve([(48, 0.8), (48.1, 0.8), (44, 0.78), (34, 0.7)], [0.01, 0.01, 0.02, 0.03]),
    "lookup table": curve([(50, 0.78), (46, 0.75)], [0.03, 0.02], prices=(0.0, 0.1)),
    "static": curve([(40, 0.6)], [0.04], prices=(0.0,)),
}


@pytest.fixture
def figure():
    return tradeoff_figure(CURVES, oracle=curve([(47, 0.9), (33, 0.85)], [0, 0], (0.0, 1.0)))


def test_every_policy_is_named_once_with_the_controller_first(figure):
    [legend] = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["controller", "lookup table", "static", ORACLE, "5 % (target)"]


def test_the_left_panel_shows_accuracy_against_time(figure):
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["static"].get_xydata().tolist() == [[40, pytest.approx(0.6)]]
    assert lines["static"].get_linestyle() == "None"
    assert lines[ORACLE].get_linestyle() == "--"
    [container] = [c for c in figure.axes[0].containers if c.get_label() == "controller"]
    line, _, [bars] = container
    assert line.get_xydata()[:, 0].tolist() == [48, 48.1, 44, 34]
    low, high = bars.get_segments()[0]
    half_width = 1.96 * np.linspace(-0.1, 0.1, 5).std(ddof=1) / 5**0.5
    assert [low[1], high[1]] == pytest.approx([0.8 - half_width, 0.8 + half_width])


def test_prices_are_written_once_where_points_lie_together(figure):
    assert [text.get_text() for text in figure.axes[0].texts] == ["price 0, 0.02", "0.1", "1"]


def test_the_right_panel_shows_violations_by_price(figure):
    right = figure.axes[1]
    assert [label.get_text() for label in right.get_xticklabels()] == ["0", "0.02", "0.1", "1"]
    drawn = [line.get_xydata().tolist() for line in right.lines]
    assert [[0, 0.01], [1, 0.01], [2, 0.02], [3, 0.03]] in drawn
    assert [[0, 0.03], [2, 0.02]] in drawn
    assert [[0, 0.04], [3, 0.04]] in drawn, "the same at every price"


def test_single_points_are_drawn():
    out = io.BytesIO()
    tradeoff_figure({"controller": CURVES["static"]}).savefig(out)
    assert out.getvalue().startswith(b"\x89PNG")

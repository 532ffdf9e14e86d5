"""Charts: round marks, points in their places, and nothing of points that are not finite."""

import math
import re

import pytest

from launch.run_report.page import STYLE
from launch.run_report.svg import WIDTH, Axis, Level, Point, Series, line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (36.9, 94.6, [20.0, 40.0, 60.0, 80.0, 100.0]),
        (0.0, 0.0, [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (7.0, 7.0, None),
        (-3.0, 1e6, None),
    ],
)
def test_marks_are_few_and_enclose_the_values(low, high, expected):
    found = ticks(low, high, 5)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert 2 <= len(found) <= 8
    assert expected is None or found == expected


def test_whole_marks_are_whole():
    assert ticks(0, 2, 6, whole=True) == [0, 1, 2]


def points(*pairs):
    return [Point(x=x, y=y, title=f"{x} & {y}") for x, y in pairs]


def test_points_are_in_their_places_with_their_figures():
    chart = line_chart(
        "a < b",
        [Series(name="one", points=points((0, 0), (10, 1))), Series(name="two", points=[])],
        Axis(label="x"),
        Axis(label="y", from_zero=True),
        [Level(name="target", y=0.5)],
    )
    places = [tuple(map(float, p)) for p in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert places == [(66.0, 242.0), (444.0, 12.0)]
    assert "10 &amp; 1" in chart
    assert "a &lt; b" in chart
    assert ">target<" in chart
    assert ">two<" not in chart, "a series without points is in no legend"


def test_every_label_is_written_however_near_the_points_are():
    near = [Point(x=1 + n / 100, y=1, title="", label=f"{n}", half_width=0.1) for n in range(6)]
    far = Point(x=2, y=2, title="")
    axes = Axis(label="x"), Axis(label="y")
    chart = line_chart("", [Series(name="", points=[*near, far])], *axes)
    assert re.findall(r'class="label".*?>(\d)<', chart) == list("012345")
    assert 'class="leader"' in chart, "a label far from its point is joined to it"


def test_text_is_readable_in_the_narrowest_chart():
    css = STYLE.read_text()
    sizes = re.findall(r"svg text[^{]*{[^}]*font-size: (\d+)px", css)
    on_screen, _label, on_phone, _print = map(int, sizes)
    (narrowest_rem,) = re.findall(r"\.charts {[^}]*minmax\(min\((\d+)rem", css)
    assert on_screen * 16 * int(narrowest_rem) / WIDTH > 10.5
    assert on_phone * 330 / WIDTH > 10.5, "330 px is the width of a chart on a phone of 390 px"


def test_points_that_are_not_finite_are_left_out():
    axes = Axis(label="x"), Axis(label="y")
    chart = line_chart("", [Series(name="", points=points((0, 1), (1, math.nan)))], *axes)
    assert chart.count('class="touch"') == 1
    assert "nan" not in re.sub(r"<title>.*?</title>", "", chart)
    with pytest.raises(ValueError, match="no point"):
        line_chart("", [Series(name="", points=points((0, math.nan)))], *axes)

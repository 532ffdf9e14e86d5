"""Line charts as inline SVG: crisp at any size, in both colour schemes and on paper.

Colours, dashes and fonts are in page.css; tooltips are the elements' titles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from launch.run_report.labels import Place, placed

WIDTH, HEIGHT = 460.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 16.0, 12.0, 48.0
NUM_STYLES = 8
"""Styles of series in page.css; more series than that begin again."""

FAR = 20.0
"""A label whose middle is farther from its point than this is joined to it by a thin line."""

MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.5 -3.5h7v7h-7z",
    "M0 -4.6L4.4 3.4H-4.4z",
    "M0 -4.8L4.8 0L0 4.8L-4.8 0z",
    "M0 4.6L4.4 -3.4H-4.4z",
    "M-4 -4L4 4M4 -4L-4 4",
    "M0 -4.5V4.5M-4.5 0H4.5",
    "M-4.5 -2h9v4h-9z",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of a series.

    Attributes:
        x: in the axis's unit.
        y: the same.
        title: the tooltip.
        half_width: half the height of an error bar.
        label: written near the point.
    """

    x: float
    y: float
    title: str
    half_width: float = 0.0
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points that are joined by a line, in the order given."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A horizontal line to compare with."""

    name: str
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis.

    Attributes:
        label: what is measured, with its unit.
        written: how a number is written.
        from_zero: whether zero is shown.
        whole: whether only whole numbers are marked.
    """

    label: str
    written: Callable[[float], str] = "{:g}".format
    from_zero: bool = False
    whole: bool = False


def percent(share: float) -> str:
    """A share as it is written on axes: `2.5 %`."""
    return f"{100 * share:.3g} %"


def tenths(share: float) -> str:
    """A share as it is written in tables: `2.1 %`."""
    return f"{100 * share:.1f} %"


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`."""
    if high - low <= 1e-9 * max(abs(high), 1.0):  # one value alone
        high = low + 0.1 * max(abs(low), 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 12) for n in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Places of values along an axis."""

    ticks: Sequence[float]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, levels: Sequence[Level] = ()
) -> str:
    """A figure with one line per series, and a legend if there is more than one.

    Raises:
        ValueError: there is no finite point.
    """
    series = [Series(name=s.name, points=[p for p in s.points if _is_finite(p)]) for s in series]
    points = [point for one in series for point in one.points]
    if not points:
        raise ValueError("there is no point to draw")
    heights = [p.y + sign * p.half_width for p in points for sign in (-1, 1)]
    x_scale = _scale(x, [p.x for p in points], (LEFT, WIDTH - RIGHT), 6)
    y_scale = _scale(y, [*heights, *(v.y for v in levels)], (HEIGHT - BOTTOM, TOP), 5)
    drawn = [
        _grid(x_scale, y_scale, x, y),
        *(_level(level, number, y_scale, y) for number, level in enumerate(levels)),
        # The first series is drawn last, on top.
        *(_line(s, n, x_scale, y_scale) for n, s in reversed(list(enumerate(series)))),
        _labels(series, x_scale, y_scale),
    ]
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        f'role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
        f"{_legend(series, levels)}</figure>"
    )


def _is_finite(point: Point) -> bool:
    return math.isfinite(point.x) and math.isfinite(point.y)


def _scale(axis: Axis, values: Sequence[float], ends: tuple[float, float], count: int) -> Scale:
    finite = [value for value in values if math.isfinite(value)]
    low = min([*finite, 0.0] if axis.from_zero else finite)
    marks = ticks(low, max(finite), count, whole=axis.whole)
    return Scale(ticks=marks, start=ends[0], end=ends[1])


def _grid(x_scale: Scale, y_scale: Scale, x: Axis, y: Axis) -> str:
    parts = []
    for value in x_scale.ticks:
        at = f"{x_scale(value):.1f}"
        parts.append(
            f'<path class="grid" d="M{at} {TOP:g}V{HEIGHT - BOTTOM:g}"/>'
            f'<text x="{at}" y="{HEIGHT - BOTTOM + 18:g}" text-anchor="middle">'
            f"{escape(x.written(value))}</text>"
        )
    for value in y_scale.ticks:
        at = f"{y_scale(value):.1f}"
        parts.append(
            f'<path class="grid" d="M{LEFT:g} {at}H{WIDTH - RIGHT:g}"/>'
            f'<text x="{LEFT - 6:g}" y="{at}" dy=".35em" text-anchor="end">'
            f"{escape(y.written(value))}</text>"
        )
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="axis" x="{middle_x:g}" y="{HEIGHT - 6:g}" text-anchor="middle">'
        f"{escape(x.label)}</text>"
        f'<text class="axis" transform="translate(12 {middle_y:g}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.label)}</text>'
    )
    return "".join(parts)


def _level(level: Level, number: int, y_scale: Scale, y: Axis) -> str:
    at = f"{y_scale(level.y):.1f}"
    return (
        f'<path class="level l{number % NUM_STYLES}" d="M{LEFT:g} {at}H{WIDTH - RIGHT:g}">'
        f"<title>{escape(level.name)}: {escape(y.written(level.y))}</title></path>"
    )


def _line(series: Series, number: int, x_scale: Scale, y_scale: Scale) -> str:
    style = number % NUM_STYLES
    places = [(x_scale(p.x), y_scale(p.y)) for p in series.points]
    parts = [f'<path class="line" d="{_path(places)}"/>' if len(places) > 1 else ""]
    for point, (x, y) in zip(series.points, places, strict=True):
        ends = _bar(point, x_scale, y_scale)
        bar = f'<path class="bar" d="{_path(ends)}"/>' if ends else ""
        parts.append(
            f'<g><title>{escape(point.title)}</title>{bar}<circle class="touch" cx="{x:.1f}" '
            f'cy="{y:.1f}" r="9"/><path class="marker" d="{MARKERS[style]}" '
            f'transform="translate({x:.1f} {y:.1f})"/></g>'
        )
    return f'<g class="series s{style}">{"".join(parts)}</g>'


def _path(places: Sequence[Place]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _bar(point: Point, x_scale: Scale, y_scale: Scale) -> list[Place]:
    """The ends of a point's error bar, if it has one."""
    if not (point.half_width > 0 and math.isfinite(point.half_width)):
        return []
    x = x_scale(point.x)
    return [(x, y_scale(point.y + sign * point.half_width)) for sign in (1, -1)]


def _labels(series: Sequence[Series], x_scale: Scale, y_scale: Scale) -> str:
    """The labels of all points that have one, each joined to its point where it is far from it."""
    points = [point for one in series for point in one.points]
    labels = [((x_scale(p.x), y_scale(p.y)), p.label) for p in points if p.label]
    if not labels:
        return ""
    lines = [[(x_scale(p.x), y_scale(p.y)) for p in one.points] for one in series]
    bars = [_bar(point, x_scale, y_scale) for point in points]
    markers = [place for line in lines for place in line]
    frame = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    middles = placed(labels, [*lines, *bars], markers, frame)
    parts = []
    for (at, text), middle in zip(labels, middles, strict=True):
        if math.dist(at, middle) > FAR:
            parts.append(f'<path class="leader" d="{_path([at, middle])}"/>')
        parts.append(
            f'<text class="label" x="{middle[0]:.1f}" y="{middle[1]:.1f}" dy=".35em" '
            f'text-anchor="middle">{escape(text)}</text>'
        )
    return "".join(parts)


def _legend(series: Sequence[Series], levels: Sequence[Level]) -> str:
    if len(series) + len(levels) < 2:
        return ""
    items = [
        f'<li><svg class="key" viewBox="0 0 30 12" aria-hidden="true"><g class="series '
        f's{number % NUM_STYLES}"><path class="line" d="M1 6H29"/><path class="marker" '
        f'd="{MARKERS[number % NUM_STYLES]}" transform="translate(15 6)"/></g></svg>'
        f"{escape(one.name)}</li>"
        for number, one in enumerate(series)
        if one.points
    ]
    items += [
        f'<li><svg class="key" viewBox="0 0 30 12" aria-hidden="true"><path class="level '
        f'l{number % NUM_STYLES}" d="M1 6H29"/></svg>{escape(level.name)}</li>'
        for number, level in enumerate(levels)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'

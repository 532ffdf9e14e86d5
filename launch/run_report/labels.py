"""Places for the labels of a chart's points: beside them, and off lines, bars and one another.

Shapes: N points that ink covers, C places to choose from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Place = tuple[float, float]
"""x and y in the units of the chart."""

CHARACTER, HEIGHT = 8.5, 13.0
"""Width of a character and height of a label in the largest font size of page.css, 15."""

STEP = 2.0
"""Distance of points of ink along a line."""

MARKER = 5.0
"""Half the size of a marker."""

MARKER_WEIGHT, LABEL_WEIGHT = 4.0, 100.0
"""What a point of ink under a label counts if it belongs to a marker or to a label, and not to a
line."""

PLACES = [
    (reach, angle)
    for reach in (9.0, 14.0, 20.0, 28.0, 38.0)
    for angle in np.deg2rad(np.arange(45, 405, 22.5))
]
"""Distances from a point to the label's edge, and directions; the first one is above it on the right."""

REACH_WEIGHT = 0.15
"""What a unit of distance counts."""


def placed(
    labels: Sequence[tuple[Place, str]],
    lines: Sequence[Sequence[Place]],
    markers: Sequence[Place],
    frame: tuple[float, float, float, float],
) -> list[Place]:
    """The middle of each label.

    Args:
        labels: the points that have one, with its text.
        lines: lines and bars, by their corners.
        markers: points that have a marker.
        frame: left, top, right and bottom of where labels may be.
    """
    along = [_along(one, other) for line in lines for one, other in pairwise(line)]
    on_markers = _grid(MARKER, MARKER) + np.reshape(markers, (-1, 1, 2))
    ink_N2 = np.concatenate([*along, on_markers.reshape(-1, 2)])
    weights_N = np.ones(len(ink_N2))
    weights_N[len(ink_N2) - on_markers[..., 0].size :] = MARKER_WEIGHT
    found = []
    for point, text in labels:
        half_2 = np.array([CHARACTER * len(text) / 2, HEIGHT / 2])
        low_2, high_2 = np.array(frame[:2]) + half_2, np.array(frame[2:]) - half_2
        middles_C2 = np.clip([_middle(point, half_2, *place) for place in PLACES], low_2, high_2)
        inside_CN = (np.abs(ink_N2 - middles_C2[:, None]) < half_2 + 1).all(-1)
        costs_C = inside_CN @ weights_N + REACH_WEIGHT * np.array([reach for reach, _ in PLACES])
        best_2 = middles_C2[costs_C.argmin()]
        found.append((float(best_2[0]), float(best_2[1])))
        own_N2 = best_2 + _grid(*half_2)
        ink_N2 = np.concatenate([ink_N2, own_N2])
        weights_N = np.concatenate([weights_N, np.full(len(own_N2), LABEL_WEIGHT)])
    return found


def _middle(point: Place, half_2: np.ndarray, reach: float, angle: float) -> np.ndarray:
    """The middle of a label whose edge is `reach` away from a point."""
    towards_2 = np.array([np.cos(angle), -np.sin(angle)])
    to_edge = np.min(half_2 / np.maximum(np.abs(towards_2), 1e-9))
    return np.array(point) + towards_2 * (reach + to_edge)


def _along(one: Place, other: Place) -> np.ndarray:
    """Points of ink from one corner of a line to the next."""
    count = max(2, int(np.hypot(other[0] - one[0], other[1] - one[1]) / STEP))
    return np.linspace(one, other, count)


def _grid(half_width: float, half_height: float) -> np.ndarray:
    """Points of ink all over a box around (0, 0)."""
    sides = [np.linspace(-half, half, int(half) + 1) for half in (half_width, half_height)]
    return np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)

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

LINE_WEIGHT, MARKER_WEIGHT, LABEL_WEIGHT = 3.0, 6.0, 100.0
"""What a point of ink under a label counts if it belongs to a line or bar, to a marker, or to
another label."""

STRANGER_WEIGHT = 15.0
"""What it counts if a label is clearly nearer to another marker than to its own."""

PLACES = [
    (reach, angle)
    for reach in (9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 64.0)
    for angle in np.deg2rad(np.arange(45, 405, 22.5))
]
"""Distances from a point to the label's edge, and directions; the first one is above it on the
right."""

REACH_WEIGHT = 0.15
"""What a unit of distance counts."""


def placed(
    labels: Sequence[tuple[Place, str]],
    lines: Sequence[Sequence[Place]],
    markers: Sequence[Place],
    frame: tuple[float, float, float, float],
) -> list[Place]:
    """The middle of each label, from which a straight line to its point meets no other label.

    Args:
        labels: the points that have one, with its text.
        lines: lines and bars, by their corners.
        markers: points that have a marker.
        frame: left, top, right and bottom of where labels may be.
    """
    markers_M2 = np.array(markers)
    ink_N2 = np.concatenate(
        [(_grid(MARKER, MARKER) + markers_M2[:, None]).reshape(-1, 2)]
        + [_along(one, other) for line in lines for one, other in pairwise(line)]
    )
    weights_N = np.full(len(ink_N2), LINE_WEIGHT)
    weights_N[: len(markers) * len(_grid(MARKER, MARKER))] = MARKER_WEIGHT
    reaches_C = np.array([reach for reach, _ in PLACES])
    found, taken_N2 = [], np.empty((0, 2))
    for point, text in labels:
        half_2 = np.array([CHARACTER * len(text) / 2, HEIGHT / 2])
        low_2, high_2 = np.array(frame[:2]) + half_2, np.array(frame[2:]) - half_2
        middles_C2 = np.clip([_middle(point, half_2, *place) for place in PLACES], low_2, high_2)
        costs_C = _covered(ink_N2, middles_C2, half_2) @ weights_N
        costs_C += LABEL_WEIGHT * _covered(taken_N2, middles_C2, half_2).sum(1)
        costs_C += LABEL_WEIGHT * np.array([_meets(taken_N2, point, m) for m in middles_C2])
        to_markers_CM = np.linalg.norm(middles_C2[:, None] - markers_M2, axis=-1)
        own_C = np.linalg.norm(middles_C2 - point, axis=-1)
        costs_C += STRANGER_WEIGHT * (to_markers_CM < 0.9 * own_C[:, None]).any(1)
        best_2 = middles_C2[(costs_C + REACH_WEIGHT * reaches_C).argmin()]
        found.append((float(best_2[0]), float(best_2[1])))
        taken_N2 = np.concatenate([taken_N2, best_2 + _grid(*half_2), _along(point, found[-1])])
    return found


def _covered(ink_N2: np.ndarray, middles_C2: np.ndarray, half_2: np.ndarray) -> np.ndarray:
    """Whether points of ink are under a label, bool [C, N]."""
    return np.all(np.abs(ink_N2 - middles_C2[:, None]) < half_2 + 1, axis=-1)


def _meets(ink_N2: np.ndarray, point: Place, middle_2: np.ndarray) -> bool:
    """Whether the line from a point to its label comes near a point of ink."""
    along = _along(point, (float(middle_2[0]), float(middle_2[1])))
    return bool((np.abs(ink_N2 - along[:, None]) < STEP).all(-1).any())


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

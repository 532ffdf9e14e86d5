"""Labels of a chart's points: each has a place of its own, off lines, bars and markers."""

from itertools import combinations

import numpy as np
import pytest

from launch.run_report.labels import CHARACTER, HEIGHT, MARKER, placed

FRAME = (60.0, 12.0, 446.0, 246.0)


def half_sizes(text):
    return np.array([CHARACTER * len(text) / 2, HEIGHT / 2])


def test_a_point_alone_has_its_label_above_it_on_the_right():
    ((x, y),) = placed([((100.0, 100.0), "0.1")], [], [(100.0, 100.0)], FRAME)
    assert 100 < x < 125
    assert 75 < y < 100


def test_labels_of_a_crowd_lie_on_nothing():
    points = [(200.0 + 14 * n, 150.0 - 11 * n) for n in range(7)]
    bars = [[(x, y - 15), (x, y + 15)] for x, y in points]
    labels = [(point, f"{n / 8:.2g}") for n, point in enumerate(points)]
    middles = np.array(placed(labels, [points, *bars], points, FRAME))
    halves = np.array([half_sizes(text) for _, text in labels])
    for one, other in combinations(range(len(labels)), 2):
        apart = np.abs(middles[one] - middles[other]) >= halves[one] + halves[other]
        assert apart.any(), (labels[one], labels[other])
    for middle, half in zip(middles, halves, strict=True):
        reach = np.abs(np.array(points) - middle)
        assert (reach >= half + MARKER).any(1).all(), "no marker is under it"
        assert (reach >= half + np.array([0, 15])).any(1).all(), "no bar is under it"


@pytest.mark.parametrize("corner", [(60.0, 12.0), (446.0, 246.0)])
def test_labels_stay_within_the_frame(corner):
    ((x, y),) = placed([(corner, "0.02")], [], [corner], FRAME)
    half_width, half_height = half_sizes("0.02")
    assert FRAME[0] + half_width <= x <= FRAME[2] - half_width
    assert FRAME[1] + half_height <= y <= FRAME[3] - half_height

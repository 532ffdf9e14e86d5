"""Adapts an estimator to new hardware with a few points measured there.

Shapes: N measured points, 2 targets in the estimator's order.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from rollout.estimator.estimator import LatencyEstimator
from rollout.estimator.latency_table import LatencyTable
from rollout.estimator.metrics import LatencyMetrics, evaluate_estimator, predict_table

MIN_POINTS = 10
OFFSET_PENALTY = 0.03
"""Ridge penalty on the offset, relative to the mean time: (5 % noise / 30 % offset)^2. With few
points of similar times, slope and offset cannot be told apart; the offset should stay small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """An adapted estimator, with its errors on held-out records before and after."""

    estimator: LatencyEstimator
    num_points: int
    before: LatencyMetrics
    after: LatencyMetrics


def recalibrate_affine(
    estimator: LatencyEstimator, points: LatencyTable, held_out: LatencyTable
) -> Recalibration:
    """Maps each head's predictions p to a * p + b, which minimises the squared relative error.

    The map becomes part of the copy's scaling, so the result is an ordinary estimator.

    Raises:
        ValueError: fewer than MIN_POINTS points, or points that fall where predictions rise.
    """
    return _compare(estimator, affine_copy(estimator, points), points, held_out)


def affine_copy(estimator: LatencyEstimator, points: LatencyTable) -> LatencyEstimator:
    """A copy of the estimator with the affine map of both heads in its scaling."""
    if len(points) < MIN_POINTS:
        raise ValueError(f"{len(points)} measured points: measure at least {MIN_POINTS}")
    predicted_ms_N2 = predict_table(estimator, points)
    slope_2, offset_ms_2 = np.array(
        [fit_affine(predicted_ms_N2[:, i], points.targets_ms_N2[:, i]) for i in range(2)]
    ).T
    if (slope_2 <= 0).any():
        raise ValueError(
            f"the points' times fall where the predictions rise (slopes {slope_2.round(3)}): "
            "measure more points, over the whole grid"
        )
    adapted = copy.deepcopy(estimator)
    slopes, offsets_ms = (
        torch.from_numpy(values).to(adapted.target_mean) for values in (slope_2, offset_ms_2)
    )
    adapted.target_mean.mul_(slopes).add_(offsets_ms)
    adapted.target_scale.mul_(slopes)
    adapted.is_scaled.fill_(True)
    return adapted


def fit_affine(predicted_ms_N: np.ndarray, measured_ms_N: np.ndarray) -> tuple[float, float]:
    """Slope a, offset b: least sum (1 - (a p + b) / m)^2 + OFFSET_PENALTY (b / mean)^2."""
    mean_ms = measured_ms_N.mean()
    design_N2 = np.stack((predicted_ms_N, np.full_like(predicted_ms_N, mean_ms)), -1)
    design_N2 /= measured_ms_N[:, None]
    normal_22 = design_N2.T @ design_N2 + np.diag([0.0, OFFSET_PENALTY])
    slope, offset = np.linalg.solve(normal_22, design_N2.sum(0))
    return float(slope), float(offset * mean_ms)


def _compare(
    before: LatencyEstimator, after: LatencyEstimator, points: LatencyTable, held_out: LatencyTable
) -> Recalibration:
    return Recalibration(
        estimator=after,
        num_points=len(points),
        before=evaluate_estimator(before, held_out),
        after=evaluate_estimator(after, held_out),
    )

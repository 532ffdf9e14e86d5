"""Errors of predicted latencies.

Shapes: N records, 2 targets in the estimator's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rollout.estimator.estimator import LatencyEstimator
from rollout.estimator.latency_table import LatencyTable


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyMetrics:
    """Errors in ms, relative errors as fractions; R^2 is None if all times are equal."""

    num_records: int
    mae_prefill_ms: float
    rmse_prefill_ms: float
    rel_error_prefill: float
    r2_prefill: float | None
    mae_decode_per_token_ms: float
    rmse_decode_per_token_ms: float
    rel_error_decode_per_token: float
    r2_decode_per_token: float | None

    @classmethod
    def of(cls, predicted_ms_N2: np.ndarray, measured_ms_N2: np.ndarray) -> LatencyMetrics:
        """Compares predictions with measurements, [N, 2] each, N at least 1."""
        error_N2 = predicted_ms_N2 - measured_ms_N2
        squares_2 = np.square(error_N2).sum(0)
        spread_2 = np.square(measured_ms_N2 - measured_ms_N2.mean(0)).sum(0)
        mae_2 = np.abs(error_N2).mean(0).tolist()
        rmse_2 = np.sqrt(squares_2 / len(error_N2)).tolist()
        relative_2 = (np.abs(error_N2) / measured_ms_N2).mean(0).tolist()
        r2_2 = [
            1 - float(squares / spread) if spread > 0 else None
            for squares, spread in zip(squares_2, spread_2, strict=True)
        ]
        return cls(
            num_records=len(error_N2),
            mae_prefill_ms=mae_2[0],
            rmse_prefill_ms=rmse_2[0],
            rel_error_prefill=relative_2[0],
            r2_prefill=r2_2[0],
            mae_decode_per_token_ms=mae_2[1],
            rmse_decode_per_token_ms=rmse_2[1],
            rel_error_decode_per_token=relative_2[1],
            r2_decode_per_token=r2_2[1],
        )


@torch.no_grad()
def predict_table(estimator: LatencyEstimator, table: LatencyTable) -> np.ndarray:
    """Predictions in ms, float64 [N, 2]."""
    device = estimator.target_mean.device
    inputs_N5 = torch.tensor(table.inputs_N5, device=device)
    return (
        torch.cat([estimator.predict(part) for part in inputs_N5.split(8192)])
        .double()
        .numpy(force=True)
    )


def evaluate_estimator(estimator: LatencyEstimator, table: LatencyTable) -> LatencyMetrics:
    """The metrics over all records of a table."""
    return LatencyMetrics.of(predict_table(estimator, table), table.targets_ms_N2)


def metrics_by_group(
    predicted_ms_N2: np.ndarray, measured_ms_N2: np.ndarray, labels_N: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The metrics of the records with each label, in the order of labels."""
    labels = np.array(labels_N)
    return {
        str(label): asdict(
            LatencyMetrics.of(predicted_ms_N2[labels == label], measured_ms_N2[labels == label])
        )
        for label in np.unique(labels)
    }

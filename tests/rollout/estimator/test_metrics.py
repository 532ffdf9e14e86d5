import numpy as np
import pytest

from rollout.estimator.metrics import LatencyMetrics, metrics_by_group

MEASURED = np.array([[100.0, 10.0], [200.0, 10.0], [300.0, 10.0]])
PREDICTED = np.array([[110.0, 9.0], [200.0, 10.0], [270.0, 12.0]])


def test_metrics_by_hand():
    metrics = LatencyMetrics.of(PREDICTED, MEASURED)
    assert metrics.num_records == 3
    assert metrics.mae_prefill_ms == pytest.approx(40 / 3)
    assert metrics.rmse_prefill_ms == pytest.approx((1000 / 3) ** 0.5)
    assert metrics.rel_error_prefill == pytest.approx(0.2 / 3)
    assert metrics.r2_prefill == pytest.approx(1 - 1000 / 20000)
    assert metrics.mae_decode_per_token_ms == pytest.approx(1.0)
    assert metrics.rmse_decode_per_token_ms == pytest.approx((5 / 3) ** 0.5)
    assert metrics.rel_error_decode_per_token == pytest.approx(0.1)
    assert metrics.r2_decode_per_token is None


def test_groups_hold_their_own_records():
    groups = metrics_by_group(PREDICTED, MEASURED, ["b", "a", "b"])
    assert list(groups) == ["a", "b"]
    assert groups["a"]["mae_prefill_ms"] == 0
    assert groups["a"]["num_records"] == 1
    assert groups["b"]["mae_prefill_ms"] == 20

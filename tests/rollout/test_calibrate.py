import numpy as np
import pytest

from envs.budgets import BudgetSampler
from envs.calibration import CALIBRATION_SPLIT
from rollout.calibrate import ExtremeLatencies

ENDS = ExtremeLatencies(np.array([[[10.0, 90.0], [12.0, 88.0]]]))


class Devices:
    """Two samples, measured three times, each time twice as slow."""

    clock_name = "sundial"

    def extreme_latencies(self, split: str, num_samples: int) -> np.ndarray:
        assert split == CALIBRATION_SPLIT
        once = np.array([[10.0, 90.0], [14.0, 86.0]])[:num_samples]
        return np.array([once, 2 * once, 4 * once])


def test_budgets_span_the_cheapest_median_and_the_full_95th_percentile():
    measured = ExtremeLatencies.measure(Devices(), 2)
    assert measured.calibration.cheapest_ms == np.median([10, 14, 20, 28, 40, 56])
    assert measured.calibration.clock == "sundial"
    budgets = measured.budgets(share_below=0.05)
    assert budgets.uniform_from_ms == measured.calibration.cheapest_ms
    full = [90, 86, 180, 172, 360, 344]
    assert budgets.range.high_ms == pytest.approx(np.quantile(full, 0.95))
    assert budgets.range.low_ms == pytest.approx(0.8 * budgets.uniform_from_ms)


@pytest.mark.parametrize(
    ("low_ms", "high_ms", "is_refused"),
    [(170, 380, True), (1, 9, True), (30, 60, False), (5, 15, False), (85, 400, False)],
)
def test_stated_budgets_must_lie_where_configurations_differ(low_ms, high_ms, is_refused):
    stated = BudgetSampler.between(low_ms, high_ms, share_below=0.1)
    if not is_refused:
        ENDS.check_straddles(stated)
        return
    with pytest.raises(ValueError, match=rf"{low_ms}\.\.{high_ms} ms.*11\.0 ms.*89\.9 ms"):
        ENDS.check_straddles(stated)

import json
from dataclasses import asdict

import numpy as np
import pytest

from envs.calibration import Calibration, SteadyTime

OWN = Calibration(cheapest_ms=20.0, full_ms=40.0, scatter=0.1, num_samples=8)
LATENCIES_RN2 = np.array([[[10.0, 90.0], [12.0, 70.0]], [[11.0, 88.0], [14.0, 72.0]]])


def test_milliseconds_are_converted_along_the_line_through_both_ends():
    to = Calibration(cheapest_ms=10.0, full_ms=50.0, scatter=0.1, num_samples=8)
    converted = OWN.convert([1.0, 19.999, 20.0, 30.0, 50.0], to)
    assert converted == pytest.approx([0.1, 9.998, 10.0, 30.0, 70.0]), "above zero"


def test_a_calibration_holds_medians_scatter_and_probes():
    found = Calibration.of_latencies(LATENCIES_RN2, "wall")
    assert (found.cheapest_ms, found.full_ms, found.num_samples) == (11.5, 80.0, 2)
    assert found.probes_ms == ((10.5, 89.0), (13.0, 71.0))
    logs = np.log(LATENCIES_RN2)
    assert found.scatter == pytest.approx(((logs[0] - logs[1]) ** 2 / 2).mean() ** 0.5)
    assert found.clock == "wall"
    assert Calibration.of_latencies(LATENCIES_RN2[:1]).scatter == 0
    again = Calibration.from_json(json.loads(json.dumps(asdict(found))))
    assert again == found


def test_a_slower_device_keeps_the_order_of_both_ends():
    slowed = OWN.slowed(1.5, 1.2)
    assert (slowed.cheapest_ms, slowed.full_ms) == (30.0, 48.0)
    common = OWN.slowed(3.0, 1.0)
    assert (common.cheapest_ms, common.full_ms) == pytest.approx((20 * 3**0.5, 40 * 3**0.5))


def test_devices_that_are_too_busy_are_refused():
    with pytest.raises(ValueError, match="too busy to be measured"):
        Calibration(cheapest_ms=30.0, full_ms=29.0, scatter=0.1, num_samples=8)


def test_steady_time_is_the_identity_to_the_bit():
    assert SteadyTime().to_present(0.1 + 0.2) == 0.1 + 0.2
    assert SteadyTime().to_calibrated(1e-300) == 1e-300

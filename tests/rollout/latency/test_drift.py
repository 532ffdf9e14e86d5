import numpy as np
import pytest

from envs.calibration import Calibration
from rollout.latency.drift import PROBE_SHARE, PROBES_KEPT, FollowedTime, Pace

CALIBRATION = Calibration(
    cheapest_ms=30.0,
    full_ms=90.0,
    scatter=0.0,
    num_samples=3,
    probes_ms=((28.0, 95.0), (31.0, 90.0), (33.0, 85.0)),
)


class Device:
    """A device with a clock of its own, on which work takes as long as its slowdown says."""

    def __init__(self) -> None:
        self.slowdown, self.seconds, self.probing_s = np.array([1.0, 1.0]), 0.0, 0.0
        self.probed: list[int] = []
        self.pace, self.sees_images = Pace(), False

    def measure(self, number: int) -> tuple[float, float]:
        cheapest, full = (CALIBRATION.probes_ms[number] * self.slowdown).tolist()
        if self.sees_images:
            self.pace.note(2.5 * self.slowdown[0])
        self.probed.append(number)
        self.seconds += (cheapest + full) / 1e3
        self.probing_s += (cheapest + full) / 1e3
        return cheapest, full

    def followed(self) -> FollowedTime:
        return FollowedTime(CALIBRATION, self.measure, self.pace, now=lambda: self.seconds)


def test_a_device_as_fast_as_calibrated_keeps_its_milliseconds():
    present = Device().followed()
    present.follow()
    for ms in (20.0, 30.0, 50.0, 120.0):
        assert present.to_present(ms) == pytest.approx(ms)
        assert present.to_calibrated(ms) == pytest.approx(ms)


def test_budgets_are_put_on_the_present_clock_and_latencies_taken_back():
    device = Device()
    device.slowdown = np.array([1.5, 1.3])
    present = device.followed()
    present.follow()
    assert present.to_present(30.0) == pytest.approx(45.0)
    assert present.to_present(90.0) == pytest.approx(117.0)
    for ms in (10.0, 30.0, 60.0, 140.0):
        assert present.to_calibrated(present.to_present(ms)) == pytest.approx(ms)


def test_a_new_device_is_probed_until_the_median_is_worth_something():
    device = Device()
    present = device.followed()
    present.follow()
    assert device.probed == [number % 3 for number in range(PROBES_KEPT)]
    present.follow()
    assert len(device.probed) == PROBES_KEPT, "no probe is due"


def test_probes_take_a_few_per_cent_of_the_time():
    device = Device()
    present = device.followed()
    present.follow()
    started, before = device.seconds, device.probing_s
    while device.seconds < started + 600:
        device.seconds += 0.5
        present.follow()
    share = (device.probing_s - before) / (device.seconds - started)
    assert 0.8 * PROBE_SHARE < share <= PROBE_SHARE


def test_a_change_of_speed_is_followed_within_half_of_the_kept_probes():
    device = Device()
    present = device.followed()
    present.follow()
    device.slowdown = np.array([1.3, 1.3])
    num_probes = len(device.probed)
    while len(device.probed) <= num_probes + PROBES_KEPT // 2:
        device.seconds += 0.5
        present.follow()
    assert present.to_present(60.0) == pytest.approx(78.0)


def test_the_pace_tells_a_change_of_speed_between_probes():
    device = Device()
    device.sees_images = True
    device.pace.note(3.0)
    present = device.followed()
    present.follow()
    num_probes = len(device.probed)
    for _ in range(24):
        device.pace.note(3.0 * 1.3)
        present.follow()
    assert len(device.probed) == num_probes
    assert present.to_present(60.0) == pytest.approx(78.0, rel=1e-3)
    device.slowdown = np.array([1.3, 1.3])
    while len(device.probed) <= num_probes + 2 * PROBES_KEPT:
        device.seconds += 0.5
        present.follow()
    assert present.to_present(60.0) == pytest.approx(78.0, rel=1e-3), "probes and pace agree"


def test_a_pace_hardly_moves_by_one_outlier():
    pace = Pace()
    assert pace.ms is None
    for ms in (3.0, 3.0, 0.0, 21.0):
        pace.note(ms)
    assert 3.0 < pace.ms < 3.2


def test_a_pace_that_is_known_only_later_changes_nothing():
    device = Device()
    present = device.followed()
    present.follow()
    device.pace.note(3.0)
    present.follow()
    assert present.to_present(60.0) == pytest.approx(60.0)


def test_a_host_that_stalls_during_a_probe_does_not_stop_the_probes():
    device = Device()
    present = device.followed()
    present.follow()
    device.seconds += 100
    measure = present.measure

    def stalled(number: int) -> tuple[float, float]:
        device.seconds += 60
        return measure(number)

    present.measure = stalled
    present.follow()
    present.measure, num_probes = measure, len(device.probed)
    device.seconds += 5
    present.follow()
    assert len(device.probed) == num_probes + 1


def test_one_outlier_is_not_followed():
    device = Device()
    present = device.followed()
    present.follow()
    device.slowdown = np.array([5.0, 5.0])
    device.seconds += 100
    present.follow()
    device.slowdown = np.array([1.0, 1.0])
    assert present.to_present(60.0) == pytest.approx(60.0)


def test_a_pace_that_no_device_has_is_not_followed(caplog):
    device = Device()
    device.sees_images = True
    device.pace.note(2.5)
    present = device.followed()
    present.follow()
    for _ in range(40):
        device.pace.note(2.5 * 3.5)  # another process beside it, on the wall clock
    present.follow()
    assert present.to_present(30.0) == pytest.approx(30.0)
    assert "3.5 times as long as at the last probe" in caplog.text
    present.follow()
    assert len(caplog.records) == 1, "it is said once"
    for _ in range(40):
        device.pace.note(2.5 * 1.4)
    present.follow()
    assert present.to_present(30.0) == pytest.approx(42.0, rel=0.01)


def test_a_pace_begins_anew():
    pace = Pace()
    pace.note(6.4)
    pace.reset()
    pace.note(2.7)
    assert pace.ms == 2.7

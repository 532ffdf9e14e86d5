"""Follows a device whose speed changes, by short probes between its groups."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from envs.calibration import Calibration

PROBE_SHARE = 0.04
"""Share of a device's time that probes may take."""

PROBES_KEPT = 8
"""Number of latest probes whose median is the present speed."""


class FollowedTime:
    """The present time of one device; implements `envs.calibration.PresentTime`.

    Args:
        calibration: what the run's milliseconds mean.
        measure: latencies in ms of the cheapest and the full configuration, now, on the calibration
            sample of the given number.
        now: seconds that pass for the device, by which probes are spaced.
    """

    def __init__(
        self,
        calibration: Calibration,
        measure: Callable[[int], tuple[float, float]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calibration = self.present = calibration
        self.measure, self.now = measure, now
        self._slowdowns: deque[np.ndarray] = deque(maxlen=PROBES_KEPT)
        self._num_probes = 0
        self._next_at = -np.inf

    def follow(self) -> None:
        """Probes the device if enough time has passed; a new device is probed several times."""
        if self.now() < self._next_at:
            return
        self._probe()
        while len(self._slowdowns) < PROBES_KEPT:
            self._probe()
        cheapest, full = np.median(self._slowdowns, axis=0).tolist()
        self.present = self.calibration.slowed(cheapest, full)

    def to_present(self, ms: float) -> float:
        """What takes `ms` by the calibration, in milliseconds of the device now."""
        return float(self.calibration.convert(ms, self.present))

    def to_calibrated(self, ms: float) -> float:
        """The inverse of `to_present`."""
        return float(self.present.convert(ms, self.calibration))

    def _probe(self) -> None:
        number = self._num_probes % len(self.calibration.probes_ms)
        latencies_2 = np.array(self.measure(number))
        self._num_probes += 1
        self._slowdowns.append(latencies_2 / self.calibration.probes_ms[number])
        # By the device's time: a host that stalls during a probe must not put off the next one.
        self._next_at = self.now() + float(latencies_2.sum()) / 1e3 * (1 / PROBE_SHARE - 1)

"""Follows a device whose speed changes, by short probes and by the pace of work in between.

Probes show how long the configurations take, but only occasionally. The pace is the time of a piece
of work that every episode has in common, the image's global crop. It costs nothing to follow, and
shows how the speed has changed since a probe.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from envs.calibration import Calibration

PROBE_SHARE = 0.04
"""Share of a device's time that probes may take."""

PROBES_KEPT = 8
"""Number of latest probes whose median is the present speed."""

PACE_MEMORY = 0.75
"""Weight of the past in the running mean of the pace."""

LARGEST_STEP = 0.2
"""A single time counts as differing from the logarithm of the pace by at most this."""


LARGEST_CHANGE = 2.0
"""Largest factor, up or down, by which the pace may change since a probe."""

log = logging.getLogger(__name__)


class Pace:
    """Running mean of the time of a piece of work that is always the same.

    Attributes:
        ms: the mean, robust against single outliers; None before the first time.
    """

    def __init__(self) -> None:
        self.ms: float | None = None

    def reset(self) -> None:
        """Forgets all times, for instance those of a device that was still cold."""
        self.ms = None

    def note(self, ms: float) -> None:
        """Takes in the time of one more piece of work."""
        if ms <= 0:
            return
        if self.ms is None:
            self.ms = ms
        step = max(-LARGEST_STEP, min(math.log(ms / self.ms), LARGEST_STEP))
        self.ms *= math.exp((1 - PACE_MEMORY) * step)


class FollowedTime:
    """The present time of one device; implements `envs.calibration.PresentTime`.

    Args:
        calibration: what the run's milliseconds mean.
        measure: latencies in ms of the cheapest and the full configuration, now, on the calibration
            sample of the given number.
        pace: pace of the device; by default one that is never updated.
        now: seconds that pass for the device, by which probes are spaced.
    """

    def __init__(
        self,
        calibration: Calibration,
        measure: Callable[[int], tuple[float, float]],
        pace: Pace | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calibration = self.present = calibration
        self.measure, self.pace, self.now = measure, pace or Pace(), now
        self._probes: deque[tuple[np.ndarray, float | None]] = deque(maxlen=PROBES_KEPT)
        self._num_probes = 0
        self._next_at = -np.inf
        self._has_warned = False

    def follow(self) -> None:
        """Takes in the pace, after a probe if one is due; a new device is probed several times."""
        if self.now() >= self._next_at:
            self._probe()
        while len(self._probes) < PROBES_KEPT:
            self._probe()
        slowdowns = [slowdown_2 * self._change_since(ms) for slowdown_2, ms in self._probes]
        cheapest, full = np.median(slowdowns, axis=0).tolist()
        self.present = self.calibration.slowed(cheapest, full)

    def to_present(self, ms: float) -> float:
        """Converts calibrated milliseconds to those of the device now."""
        return float(self.calibration.convert(ms, self.present))

    def to_calibrated(self, ms: float) -> float:
        """The inverse of `to_present`."""
        return float(self.present.convert(ms, self.calibration))

    def _probe(self) -> None:
        number = self._num_probes % len(self.calibration.probes_ms)
        pace_ms = self.pace.ms
        latencies_2 = np.array(self.measure(number))
        # A probe repeats prepared samples, so its own work has a different pace.
        self.pace.ms = pace_ms
        self._num_probes += 1
        slowdown_2 = latencies_2 / self.calibration.probes_ms[number]
        self._probes.append((slowdown_2, pace_ms))
        # By the device's time: a host that stalls during a probe must not put off the next one.
        self._next_at = self.now() + float(latencies_2.sum()) / 1e3 * (1 / PROBE_SHARE - 1)

    def _change_since(self, pace_ms: float | None) -> float:
        """How many times as long work takes now as at an earlier pace.

        A change that no device makes between two probes comes from the host, not from the device:
        it is ignored, and the next probes show the speed.
        """
        if pace_ms is None or self.pace.ms is None:
            return 1.0
        change = self.pace.ms / pace_ms
        if 1 / LARGEST_CHANGE <= change <= LARGEST_CHANGE:
            return change
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "an image's global crop takes %.1f times as long as at the last probe, which is "
                "too large for the device itself: while it exceeds %.1f, only probes are followed. "
                "Is other work running here, or is the wall clock in use?",
                *(change, LARGEST_CHANGE),
            )
        return 1.0

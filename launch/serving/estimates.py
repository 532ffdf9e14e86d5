"""How long answers take on the replicas, learned from earlier answers."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT = 0.1
"""Weight of the newest observation in a moving average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheapestTimes:
    """Latency of the cheapest configuration in ms, as a replica measured it when it started.

    Attributes:
        image_ms: for a question about an image.
        text_ms: for a question without one.
    """

    image_ms: float
    text_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One answer that a replica gave.

    Attributes:
        has_image: whether the question was about an image.
        is_cheapest: whether the cheapest configuration ran.
        latency_ms: latency of the episode on the device's clock, which the controller answers for.
        wall_ms: the same on the wall clock.
        replica_ms: time from the request's turn to the end of its answer.
    """

    has_image: bool
    is_cheapest: bool
    latency_ms: float
    wall_ms: float
    replica_ms: float


class Estimates:
    """Moving averages, by whether there is an image.

    Args:
        cheapest: the first estimate; None before any replica has started.
    """

    def __init__(self, cheapest: CheapestTimes | None = None) -> None:
        self._cheapest_ms = {True: 0.0, False: 0.0}
        self._overhead_ms = {True: 0.0, False: 0.0}
        self._deviation_ms = {True: 0.0, False: 0.0}
        self._slowdown = 1.0
        self._replica_ms = 0.0
        if cheapest is not None:
            self.start(cheapest)

    def start(self, cheapest: CheapestTimes) -> None:
        """Takes what a replica measured when it started."""
        self._cheapest_ms = {True: cheapest.image_ms, False: cheapest.text_ms}

    @property
    def replica_ms(self) -> float:
        """Time that an answer occupies a replica; the cheapest one's before there was an answer."""
        return self._replica_ms or max(self._cheapest_ms.values())

    def cheapest_ms(self, has_image: bool) -> float:
        """Latency of the cheapest configuration on the device's clock."""
        return self._cheapest_ms[has_image]

    @property
    def slowdown(self) -> float:
        """Milliseconds that pass for each millisecond of the device's clock.

        More than 1 if other processes use the device, whose clock leaves them out.
        """
        return self._slowdown

    def overhead_ms(self, has_image: bool) -> float:
        """Time of an answer that is not part of its latency: decoding the image, messages.

        The mean, and the mean deviation from it as a margin.
        """
        return self._overhead_ms[has_image] + self._deviation_ms[has_image]

    def observe(self, seen: Observation) -> None:
        """Learns from an answer."""
        key, overhead_ms = seen.has_image, max(0.0, seen.replica_ms - seen.wall_ms)
        self._slowdown += WEIGHT * (max(1.0, seen.wall_ms / seen.latency_ms) - self._slowdown)
        if self._overhead_ms[key]:
            off_ms = abs(overhead_ms - self._overhead_ms[key])
            self._deviation_ms[key] += WEIGHT * (off_ms - self._deviation_ms[key])
        self._overhead_ms[key] = _moved(self._overhead_ms[key], overhead_ms)
        self._replica_ms = _moved(self._replica_ms, seen.replica_ms)
        if seen.is_cheapest:
            self._cheapest_ms[key] = _moved(self._cheapest_ms[key], seen.latency_ms)
        # Nothing takes less than the cheapest configuration, up to noise.
        self._cheapest_ms[key] = min(self._cheapest_ms[key], seen.latency_ms)

    def doubt(self, has_image: bool) -> None:
        """Lowers the estimate of a question that was refused because of it.

        An estimate that is too high would otherwise refuse everything, and never be corrected.
        """
        self._cheapest_ms[has_image] *= 0.99


def _moved(average: float, value: float) -> float:
    return value if average == 0 else (1 - WEIGHT) * average + WEIGHT * value

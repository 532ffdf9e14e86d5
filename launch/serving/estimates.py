"""How long answers take on the replicas: measured when they start, then learned from answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import product

WEIGHT = 0.1
"""Weight of the newest observation in a moving average."""

LEAST_SHARE = 0.6
"""The cheapest configuration never counts as faster than this share of what was measured when the
replica started: by so much a device may have been slower then."""

STALE_S = 5.0
"""After this long without an answer to a request of some size, nothing is refused because of older
ones: an estimate that is too high would otherwise refuse everything, and never be corrected."""

LONG_PROMPT_CHARS = 400
"""A prompt is long from this number of characters on."""


class ImageSize(IntEnum):
    """Classes of images by their number of pixels."""

    NONE = 0
    SMALL = 1
    MEDIUM = 2
    LARGE = 3

    @property
    def smallest(self) -> tuple[int, int] | None:
        """Width and height in pixels of the smallest image of this class that is measured."""
        return (None, (32, 24), (448, 336), (1344, 1008))[self]

    @classmethod
    def of(cls, size: tuple[int, int] | None) -> ImageSize:
        """The class of an image of a width and height; None without an image."""
        if size is None:
            return cls.NONE
        for larger in (cls.LARGE, cls.MEDIUM):
            width, height = larger.smallest or (0, 0)
            if size[0] * size[1] >= width * height:
                return larger
        return cls.SMALL


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSize:
    """What the latency of the cheapest configuration depends on, in classes.

    Attributes:
        image: class of the image.
        has_long_prompt: whether the prompt is long.
    """

    image: ImageSize = ImageSize.NONE
    has_long_prompt: bool = False

    @classmethod
    def of(cls, image_size: tuple[int, int] | None, prompt: str) -> RequestSize:
        """The class of a request."""
        is_long = len(prompt) >= LONG_PROMPT_CHARS
        return cls(image=ImageSize.of(image_size), has_long_prompt=is_long)


REQUEST_SIZES = tuple(
    RequestSize(image=image, has_long_prompt=is_long)
    for image, is_long in product(ImageSize, (False, True))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheapestTimes:
    """Latency of the cheapest configuration, as a replica measured it when it started.

    Attributes:
        by_size_ms: for the smallest request of each size, in ms.
    """

    by_size_ms: Mapping[RequestSize, float]

    def __post_init__(self) -> None:
        missing = [size for size in REQUEST_SIZES if size not in self.by_size_ms]
        if missing:
            raise ValueError(f"there is no time for {missing[0]}: measure every size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One answer that a replica gave.

    Attributes:
        size: of the request.
        at_s: when the answer ended.
        is_cheapest: whether the cheapest configuration ran.
        is_whole: whether the answer ended by itself, or at the server's own limit, and not because
            the request asked for fewer tokens.
        latency_ms: latency of the episode on the device's clock, which the controller answers for.
        wall_ms: the same on the wall clock.
        replica_ms: time from the request's turn to the end of its answer.
    """

    size: RequestSize
    at_s: float
    is_cheapest: bool
    is_whole: bool
    latency_ms: float
    wall_ms: float
    replica_ms: float


@dataclass(slots=True, kw_only=True)
class Spread:
    """A moving average, and one of the deviations from it.

    Attributes:
        mean: the average; zero before anything is known.
        deviation: mean deviation from it.
    """

    mean: float = 0.0
    deviation: float = 0.0

    def observe(self, value: float) -> None:
        """Learns a value."""
        if self.mean:
            self.deviation += WEIGHT * (abs(value - self.mean) - self.deviation)
        self.mean = _moved(self.mean, value)


@dataclass(slots=True, kw_only=True)
class Estimates:
    """Moving averages, by size.

    Attributes:
        started: what the first replica measured; None before any has started.
        slowdown: milliseconds that pass for each millisecond of the device's clock: more than 1 if
            other processes use the device, whose clock leaves them out.
    """

    started: CheapestTimes | None = None
    slowdown: float = 1.0
    _cheapest: dict[RequestSize, Spread] = field(default_factory=dict)
    _overhead: dict[ImageSize, Spread] = field(default_factory=dict)
    _seen_s: dict[RequestSize, float] = field(default_factory=dict)
    _replica_ms: float = 0.0

    def start(self, started: CheapestTimes) -> None:
        """Takes what a replica measured when it started."""
        self.started = started

    @property
    def replica_ms(self) -> float:
        """Time that an answer occupies a replica; the cheapest one's before there was an answer."""
        if self._replica_ms or self.started is None:
            return self._replica_ms
        return max(self.started.by_size_ms.values())

    def least_ms(self, size: RequestSize) -> float:
        """What no answer takes less than; see `LEAST_SHARE`."""
        return 0.0 if self.started is None else LEAST_SHARE * self.started.by_size_ms[size]

    def cheapest_ms(self, size: RequestSize) -> float:
        """Latency of the cheapest configuration on the device's clock."""
        if self.started is None:
            return 0.0
        seen = self._cheapest.get(size)
        expected_ms = self.started.by_size_ms[size] if seen is None else seen.mean
        return max(expected_ms, self.least_ms(size))

    def overhead_ms(self, size: RequestSize) -> float:
        """Time of an answer that is not part of its latency: decoding the image, messages.

        The mean, and the mean deviation from it as a margin.
        """
        known = self._overhead.get(size.image, Spread())
        return known.mean + known.deviation

    def needed_ms(self, size: RequestSize, now_s: float) -> float:
        """How long an answer takes if the cheapest configuration gives it, all included.

        With margins; see `STALE_S` for what is long ago.
        """
        seen_s = self._seen_s.get(size)
        if seen_s is not None and now_s - seen_s > STALE_S:
            return self.least_ms(size)
        cheapest = self._cheapest.get(size, Spread())
        episode_ms = self.slowdown * (self.cheapest_ms(size) + cheapest.deviation)
        return episode_ms + self.overhead_ms(size)

    def observe(self, seen: Observation) -> None:
        """Learns from an answer."""
        self._seen_s[seen.size] = seen.at_s
        self.slowdown += WEIGHT * (max(1.0, seen.wall_ms / seen.latency_ms) - self.slowdown)
        overhead_ms = max(0.0, seen.replica_ms - seen.wall_ms)
        self._overhead.setdefault(seen.size.image, Spread()).observe(overhead_ms)
        self._replica_ms = _moved(self._replica_ms, seen.replica_ms)
        # Nothing takes less than the cheapest configuration, up to noise.
        is_faster = seen.latency_ms < self.cheapest_ms(seen.size)
        if seen.is_whole and (seen.is_cheapest or is_faster):
            known = self._cheapest.setdefault(seen.size, Spread(mean=self.cheapest_ms(seen.size)))
            known.observe(max(seen.latency_ms, self.least_ms(seen.size)))


def _moved(average: float, value: float) -> float:
    return value if average == 0 else (1 - WEIGHT) * average + WEIGHT * value

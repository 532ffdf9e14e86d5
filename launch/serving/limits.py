"""Limits on what requests may ask for and how long everything may take."""

from __future__ import annotations

from dataclasses import dataclass

from envs.checks import check_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one request.

    Attributes:
        body_mib: largest request body, in MiB; an image takes a third more as a data URL.
        all_bodies_mib: largest sum of the bodies of all requests at a time, in MiB.
        megapixels: largest image, in millions of pixels.
        prompt_chars: longest question, in characters.
        max_budget_ms: largest latency budget, in ms.
        body_timeout_s: time limit for a client to send its request, in seconds.
        wait_timeout_s: longest wait for a free replica, in seconds.
        episode_timeout_s: time limit for one answer once it has begun, in seconds; a replica that
            takes longer is restarted.
    """

    body_mib: float = 12.0
    all_bodies_mib: float = 256.0
    megapixels: float = 24.0
    prompt_chars: int = 4000
    max_budget_ms: float = 60_000.0
    body_timeout_s: float = 10.0
    wait_timeout_s: float = 10.0
    episode_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        check_within(self, *self.__slots__, low=0, above=True)

    @property
    def body_bytes(self) -> int:
        """Largest request body, in bytes."""
        return int(self.body_mib * 2**20)

    @property
    def all_bodies_bytes(self) -> int:
        """Largest sum of all bodies, in bytes."""
        return int(self.all_bodies_mib * 2**20)

    @property
    def request_timeout_s(self) -> float:
        """Time after which the server gives up on a request, in any case."""
        return self.body_timeout_s + self.wait_timeout_s + 2 * self.episode_timeout_s

"""The price of time on a loaded server.

A request that takes longer keeps those who wait waiting. The price of the next request is therefore
the lowest one at which the replicas keep up with what arrives, by the controller's curve of device
time against price. Without load it is the deployment's own price.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from envs.price_curve import PriceCurve
from envs.prices import FREE

TARGET_BUSY_SHARE = 0.8
"""Share of their time for which the replicas may be busy at the price that is chosen.

At 0.92, requests that come close together wait too long (see `studies.load_simulation`)."""

RATE_WINDOW_S = 3.0
"""Time constant of the moving average of the arrival rate."""

DRAIN_S = 1.0
"""Requests that wait count as if they arrived within this time."""

WEIGHT = 0.05
"""Weight of the newest answer in the moving averages of service times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of the replicas.

    Attributes:
        arrivals_per_s: requests that arrive per second.
        num_waiting: number of requests in the queue.
        num_replicas: number of replicas, each of which answers one request at a time.
    """

    arrivals_per_s: float
    num_waiting: int
    num_replicas: int

    @property
    def bearable_ms(self) -> float:
        """How long a request may occupy a replica on average, so that the replicas keep up."""
        per_s = self.arrivals_per_s + self.num_waiting / DRAIN_S
        return 1e3 * TARGET_BUSY_SHARE * self.num_replicas / per_s if per_s > 0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTime:
    """How long a request occupies a replica: scale * device time of the curve + overhead.

    Attributes:
        scale: milliseconds that pass for each millisecond of the curve. It covers other budgets and
            questions than those of the curve, the device's speed, and other processes.
        overhead_ms: time that is not part of the episode.
    """

    scale: float = 1.0
    overhead_ms: float = 0.0


def price_of_load(
    curve: PriceCurve, demand: Demand, service: ServiceTime, least_price: float
) -> float:
    """The lowest price, from `least_price` on, at which the replicas keep up with the demand.

    It is the highest one of the curve if they keep up at none.
    """
    bearable_ms = (demand.bearable_ms - service.overhead_ms) / service.scale
    return max(least_price, curve.price_for(bearable_ms))


@dataclass(slots=True, kw_only=True)
class ArrivalRate:
    """A moving average of arrivals per second, with exponentially falling weights."""

    _count: float = 0.0
    _last_s: float = 0.0

    def arrive(self, now_s: float) -> None:
        """Counts a request."""
        self._count, self._last_s = self._decayed(now_s) + 1, now_s

    def per_s(self, now_s: float) -> float:
        """The present rate."""
        return self._decayed(now_s) / RATE_WINDOW_S

    def _decayed(self, now_s: float) -> float:
        return self._count * math.exp(-max(0.0, now_s - self._last_s) / RATE_WINDOW_S)


@dataclass(slots=True, kw_only=True)
class LoadPrice:
    """The price of each request, from what arrives, what waits, and how long answers took.

    Attributes:
        own_price: the deployment's price, for requests that state none.
        curve: device time by price; None keeps every request at its own price.
    """

    own_price: float = FREE
    curve: PriceCurve | None = None
    _rate: ArrivalRate = field(default_factory=ArrivalRate)
    _service: dict[str, ServiceTime] = field(default_factory=dict)

    def start(self, own_price: float, curve: PriceCurve | None) -> None:
        """Takes what a replica says about its run."""
        self.own_price, self.curve = own_price, curve

    def arrive(self, now_s: float) -> None:
        """Counts a request that arrives now."""
        self._rate.arrive(now_s)

    def price(
        self, policy: str, asked: float | None, now_s: float, *, num_waiting: int, num_replicas: int
    ) -> float:
        """The price of a request that begins now.

        Args:
            policy: the policy that it asks for.
            asked: the price that it states: a floor, which holds as it is without load.
            now_s: the time.
            num_waiting: number of requests that wait after it.
            num_replicas: number of replicas.
        """
        least = self.own_price if asked is None else asked
        if self.curve is None:
            return least
        demand = Demand(
            arrivals_per_s=self._rate.per_s(now_s),
            num_waiting=num_waiting,
            num_replicas=num_replicas,
        )
        return price_of_load(self.curve, demand, self.service_of(policy), least)

    def observe(self, policy: str, price: float, *, wall_ms: float, replica_ms: float) -> None:
        """Learns from an answer that a policy chose at a price.

        Args:
            policy: the policy that chose.
            price: the price that it chose for.
            wall_ms: time of the episode.
            replica_ms: time for which the request occupied its replica.
        """
        if self.curve is None:
            return
        scale = wall_ms / self.curve.time_at(price)
        overhead_ms = max(0.0, replica_ms - wall_ms)
        known = self._service.get(policy)
        if known is not None:
            scale = known.scale + WEIGHT * (scale - known.scale)
            overhead_ms = known.overhead_ms + WEIGHT * (overhead_ms - known.overhead_ms)
        self._service[policy] = ServiceTime(scale=scale, overhead_ms=overhead_ms)

    def service_of(self, policy: str) -> ServiceTime:
        """What is known of a policy's service times."""
        return self._service.get(policy, ServiceTime())

"""Which requests wait, for how long, and with how much of their budget they begin.

Time in the queue counts: a request begins with what is left of its budget. If others wait, the time
until each one's deadline is shared by all who come before it, so that an early request does not use
up the time of a later one. Requests are served in the order of their arrival, as many at a time as
there are replicas.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from envs.checks import check_within
from launch.serving.errors import ApiError
from launch.serving.estimates import Estimates, Observation

Late = Literal["cheapest", "refuse"]

LEAST_MS = 1.0
"""The smallest budget that a replica is given, even for a very late request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """The queue in front of the replicas.

    Attributes:
        max_waiting: number of requests that may wait; more are refused.
        late: what happens to a request that can no longer be answered within its budget:
            `cheapest` answers it with the cheapest configuration, `refuse` refuses it at once.
    """

    max_waiting: int = 32
    late: Late = "cheapest"

    def __post_init__(self) -> None:
        check_within(self, "max_waiting", low=0)


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """A request in the queue or on a replica.

    Attributes:
        budget_ms: the request's budget, from its arrival.
        has_image: whether it asks about an image.
        arrived_s: when it arrived, on the queue's clock.
        on_turn: called when a replica is free for it.
        begun_s: when its turn came; None while it waits.
        is_late: whether the cheapest configuration is to answer it.
    """

    budget_ms: float
    has_image: bool
    arrived_s: float
    on_turn: Callable[[], object]
    begun_s: float | None = None
    is_late: bool = False


@dataclass(kw_only=True)
class Admission:
    """The queue.

    Attributes:
        config: its length, and what happens to late requests.
        estimates: how long answers take.
        now: the clock, in seconds.
        num_replicas: number of requests that may run at a time.
    """

    config: QueueConfig
    estimates: Estimates = field(default_factory=Estimates)
    now: Callable[[], float] = time.monotonic
    num_replicas: int = 0
    _waiting: deque[Ticket] = field(default_factory=deque)
    _running: set[Ticket] = field(default_factory=set)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Number of requests that have begun."""
        return len(self._running)

    def expected_wait_ms(self) -> float:
        """How long a request that arrives now will wait."""
        num_ahead = self.num_waiting + self.num_running - self.num_replicas + 1
        if num_ahead <= 0:
            return 0.0
        # Of those that run, half of their time is still to come, on average.
        share = num_ahead - 0.5
        return share * self.estimates.replica_ms / max(1, self.num_replicas)

    def arrive(
        self, *, budget_ms: float, has_image: bool, arrived_s: float, on_turn: Callable[[], object]
    ) -> Ticket:
        """Takes a request that arrived at a time of `now`; its turn may come within this call.

        Raises:
            ApiError: 429, because the queue is full, or the request would be late and late ones
                are refused.
        """
        ticket = Ticket(
            budget_ms=budget_ms, has_image=has_image, arrived_s=arrived_s, on_turn=on_turn
        )
        wait_ms = self.waited_ms(ticket) + self.expected_wait_ms()
        if self.num_running >= self.num_replicas and self.num_waiting >= self.config.max_waiting:
            raise self._refusal("queue_full", "the queue is full", wait_ms)
        if self.config.late == "refuse" and self._is_late(ticket, wait_ms):
            raise self._too_late(ticket, wait_ms)
        self._waiting.append(ticket)
        self._advance()
        return ticket

    def begin(self, ticket: Ticket) -> float:
        """Begins a request whose turn has come; returns its episode's budget on the device's clock.

        Sets `Ticket.is_late`.

        Raises:
            ApiError: 429, because it has become late and late ones are refused.
        """
        assert ticket.begun_s is not None, "its turn has not come"
        ticket.is_late = self._is_late(ticket, self._passed_ms(ticket))
        if ticket.is_late and self.config.late == "refuse":
            raise self._too_late(ticket, self.expected_wait_ms())
        left_ms = min([self._left_ms(ticket), *self._shares_ms(ticket.has_image)])
        return max(left_ms / self.estimates.slowdown, LEAST_MS)

    def _shares_ms(self, has_image: bool) -> Iterator[float]:
        """Equal shares of the time until the deadlines of those who wait.

        Deadlines that not even the cheapest configuration could meet are left out.
        """
        for number, waiting in enumerate(self._waiting, start=1):
            num_turns = number / max(1, self.num_replicas) + 1
            # Every turn has its overhead; the last one's is taken off already.
            spent_ms = (num_turns - 1) * self.estimates.overhead_ms(has_image)
            share_ms = (self._left_ms(waiting) - spent_ms) / num_turns
            if share_ms >= self._cheapest_ms(has_image):
                yield share_ms

    def _left_ms(self, ticket: Ticket) -> float:
        """What is left of a budget for the episode, on the wall clock."""
        overhead_ms = self.estimates.overhead_ms(ticket.has_image)
        return ticket.budget_ms - self._passed_ms(ticket) - overhead_ms

    def _passed_ms(self, ticket: Ticket) -> float:
        return 1e3 * (self.now() - ticket.arrived_s)

    def waited_ms(self, ticket: Ticket) -> float:
        """How long a request has waited for its turn."""
        until_s = self.now() if ticket.begun_s is None else ticket.begun_s
        return 1e3 * (until_s - ticket.arrived_s)

    def wait_again(self, ticket: Ticket) -> None:
        """Puts a request that lost its replica back to the head of the queue."""
        self._running.discard(ticket)
        ticket.begun_s = None
        self._waiting.appendleft(ticket)
        self._advance()

    def leave(self, ticket: Ticket) -> None:
        """Ends a request, wherever it is; the next one's turn comes."""
        if ticket in self._running:
            self._running.remove(ticket)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        self._advance()

    def observe(
        self, ticket: Ticket, *, latency_ms: float, wall_ms: float, is_cheapest: bool
    ) -> None:
        """Learns from a request whose answer has just ended; see `Observation`."""
        assert ticket.begun_s is not None
        self.estimates.observe(
            Observation(
                has_image=ticket.has_image,
                is_cheapest=is_cheapest,
                latency_ms=latency_ms,
                wall_ms=wall_ms,
                replica_ms=1e3 * (self.now() - ticket.begun_s),
            )
        )

    def resize(self, num_replicas: int) -> None:
        """Takes the present number of replicas."""
        self.num_replicas = num_replicas
        self._advance()

    def _advance(self) -> None:
        while self._waiting and len(self._running) < self.num_replicas:
            ticket = self._waiting.popleft()
            ticket.begun_s = self.now()
            self._running.add(ticket)
            ticket.on_turn()

    def _is_late(self, ticket: Ticket, wait_ms: float) -> bool:
        needed_ms = self._cheapest_ms(ticket.has_image)
        needed_ms += self.estimates.overhead_ms(ticket.has_image)
        return wait_ms + needed_ms > ticket.budget_ms

    def _cheapest_ms(self, has_image: bool) -> float:
        """How long the cheapest configuration takes, other processes' time included."""
        return self.estimates.slowdown * self.estimates.cheapest_ms(has_image)

    def _too_late(self, ticket: Ticket, wait_ms: float) -> ApiError:
        needed_ms = self._cheapest_ms(ticket.has_image)
        self.estimates.doubt(ticket.has_image)
        reason = (
            f"no configuration answers this within {ticket.budget_ms:g} ms now: the cheapest takes "
            f"about {needed_ms:.0f} ms, after a wait"
        )
        return self._refusal("budget_too_short", reason, wait_ms)

    def _refusal(self, code: str, reason: str, wait_ms: float) -> ApiError:
        message = f"{reason}; {self.num_waiting} requests wait, about {wait_ms:.0f} ms"
        return ApiError(429, message, code=code, retry_after_s=wait_ms / 1e3)

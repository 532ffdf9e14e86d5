"""Which requests wait, for how long, and on which terms they begin.

Requests are answered in the order of their deadlines, as many at a time as there are replicas. Time
in the queue counts: a request begins with what is left of its budget, and at a price of time that
rises with the load (see `launch.serving.pricing`), so that it does not use up the time of those who
wait. A request that no configuration can answer in time any more gives way to those that still can
be, unless late ones are refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from envs.checks import check_within
from envs.terms import Terms
from launch.serving.errors import ApiError, invalid
from launch.serving.estimates import Estimates, Observation, RequestSize
from launch.serving.pricing import LoadPrice

Late = Literal["cheapest", "refuse"]

LEAST_MS = 1.0
"""The smallest budget that a replica is given, even for a very late request."""


LONGEST_WAIT_MS = 5000.0
"""A request counts as due after this time at the latest, so that one with a long budget is not
overtaken until it is given up."""


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
        policy: the policy or configuration that it asks for.
        budget_ms: the request's budget, from its arrival.
        price: the price that it states; None if it states none.
        size: of its image and prompt.
        arrived_s: when it arrived, on the queue's clock.
        on_turn: called when a replica is free for it.
        begun_s: when its turn came; None while it waits.
        is_late: whether the cheapest configuration is to answer it.
        is_given_up: whether it has lost its place to one that can still be answered in time.
    """

    policy: str
    budget_ms: float
    price: float | None = None
    size: RequestSize
    arrived_s: float
    on_turn: Callable[[], object]
    begun_s: float | None = None
    is_late: bool = False
    is_given_up: bool = False

    @property
    def due_s(self) -> float:
        """Its deadline, on the queue's clock; see `LONGEST_WAIT_MS`."""
        return self.arrived_s + min(self.budget_ms, LONGEST_WAIT_MS) / 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer that has ended.

    Attributes:
        price: price of time that it was chosen for.
        latency_ms: latency of the episode on the device's clock.
        wall_ms: the same on the wall clock.
        is_cheapest: whether the cheapest configuration ran.
        is_whole: whether the request did not cut it short; see `Observation`.
    """

    price: float
    latency_ms: float
    wall_ms: float
    is_cheapest: bool
    is_whole: bool


@dataclass(kw_only=True)
class Admission:
    """The queue.

    Attributes:
        config: its length, and what happens to late requests.
        pricing: the price of time.
        estimates: how long answers take.
        now: the clock, in seconds.
        num_replicas: number of requests that may run at a time.
    """

    config: QueueConfig
    pricing: LoadPrice = field(default_factory=LoadPrice)
    estimates: Estimates = field(default_factory=Estimates)
    now: Callable[[], float] = time.monotonic
    num_replicas: int = 0
    _waiting: list[Ticket] = field(default_factory=list)
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
        """How long a request that comes after all others will wait."""
        num_ahead = self.num_waiting + self.num_running - self.num_replicas + 1
        if num_ahead <= 0:
            return 0.0
        # Of those that run, half of their time is still to come, on average.
        share = num_ahead - 0.5
        return share * self.estimates.replica_ms / max(1, self.num_replicas)

    def arrive(self, ticket: Ticket) -> None:
        """Takes a request that has arrived; its turn may come within this call.

        In a full queue it takes the place of one that can no longer be answered in time.

        Raises:
            ApiError: the queue is full, or the request would be late and late ones are refused.
        """
        self.pricing.arrive(ticket.arrived_s)
        if self.config.late == "refuse" and self._is_late(ticket, self._least_wait_ms(ticket)):
            raise self._too_late(ticket)
        is_full = (
            self.num_running >= self.num_replicas and self.num_waiting >= self.config.max_waiting
        )
        if is_full and not self._makes_room_for(ticket):
            raise self._queue_full()
        self._waiting.append(ticket)
        self._advance()

    def begin(self, ticket: Ticket) -> Terms:
        """Begins a request whose turn has come; returns the terms of its episode.

        The budget is on the device's clock. Sets `Ticket.is_late`.

        Raises:
            ApiError: it has become late and late ones are refused, or it was given up.
        """
        assert ticket.begun_s is not None, "its turn has not come"
        if ticket.is_given_up:
            raise self._queue_full()
        ticket.is_late = self._is_late(ticket)
        if ticket.is_late and self.config.late == "refuse":
            raise self._too_late(ticket)
        price = self.pricing.price(
            ticket.policy,
            ticket.price,
            self.now(),
            num_waiting=self.num_waiting,
            num_replicas=self.num_replicas,
        )
        left_ms = self._left_ms(ticket) / self.estimates.slowdown
        return Terms(budget_ms=max(left_ms, LEAST_MS), price=price)

    def _makes_room_for(self, ticket: Ticket) -> bool:
        """Gives up a waiting request that is late already, if this one is not."""
        late = [waiting for waiting in self._waiting if self._is_late(waiting)]
        if not late or self._is_late(ticket):
            return False
        given_up = min(late, key=lambda waiting: waiting.due_s)
        self._waiting.remove(given_up)
        given_up.is_given_up, given_up.begun_s = True, self.now()
        given_up.on_turn()
        return True

    def _least_wait_ms(self, ticket: Ticket) -> float:
        """How long a request waits at least, if all before it are answered as cheaply as can be."""
        if self.num_running + self.num_waiting < self.num_replicas:
            return 0.0
        ahead = [waiting for waiting in self._waiting if waiting.due_s <= ticket.due_s]
        needed_ms = sum(self._needed_ms(waiting) for waiting in ahead)
        # Of those that run, half of their time is still to come, on average.
        needed_ms += 0.5 * sum(self._needed_ms(running) for running in self._running)
        return needed_ms / max(1, self.num_replicas)

    def _left_ms(self, ticket: Ticket) -> float:
        """What is left of a budget for the episode, on the wall clock."""
        overhead_ms = self.estimates.overhead_ms(ticket.size)
        return ticket.budget_ms - self._passed_ms(ticket) - overhead_ms

    def _passed_ms(self, ticket: Ticket) -> float:
        return 1e3 * (self.now() - ticket.arrived_s)

    def waited_ms(self, ticket: Ticket) -> float:
        """How long a request has waited for its turn."""
        until_s = self.now() if ticket.begun_s is None else ticket.begun_s
        return 1e3 * (until_s - ticket.arrived_s)

    def wait_again(self, ticket: Ticket) -> None:
        """Puts a request that lost its replica back into the queue, before any of its deadline."""
        self._running.discard(ticket)
        ticket.begun_s = None
        self._waiting.insert(0, ticket)
        self._advance()

    def leave(self, ticket: Ticket) -> None:
        """Ends a request, wherever it is; the next one's turn comes."""
        if ticket in self._running:
            self._running.remove(ticket)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        self._advance()

    def observe(self, ticket: Ticket, answer: Answered) -> None:
        """Learns from a request whose answer has just ended."""
        assert ticket.begun_s is not None
        replica_ms = 1e3 * (self.now() - ticket.begun_s)
        if not ticket.is_late:
            self.pricing.observe(
                ticket.policy, answer.price, wall_ms=answer.wall_ms, replica_ms=replica_ms
            )
        self.estimates.observe(
            Observation(
                size=ticket.size,
                at_s=self.now(),
                is_cheapest=answer.is_cheapest,
                is_whole=answer.is_whole,
                latency_ms=answer.latency_ms,
                wall_ms=answer.wall_ms,
                replica_ms=replica_ms,
            )
        )

    def resize(self, num_replicas: int) -> None:
        """Takes the present number of replicas."""
        self.num_replicas = num_replicas
        self._advance()

    def _advance(self) -> None:
        while self._waiting and len(self._running) < self.num_replicas:
            ticket = min(self._waiting, key=self._place)
            self._waiting.remove(ticket)
            ticket.begun_s = self.now()
            self._running.add(ticket)
            ticket.on_turn()

    def _place(self, ticket: Ticket) -> tuple[bool, float]:
        """What the queue is ordered by: the deadline, and first whether it can still be met.

        Where late requests are refused they do not have to give way, because they take no time.
        """
        return self.config.late == "cheapest" and self._is_late(ticket), ticket.due_s

    def _is_late(self, ticket: Ticket, wait_ms: float = 0.0) -> bool:
        """Whether no configuration can answer it in time if it waits for so much longer."""
        return self._passed_ms(ticket) + wait_ms + self._needed_ms(ticket) > ticket.budget_ms

    def _needed_ms(self, ticket: Ticket) -> float:
        """How long its answer takes at least, what is not part of the episode included."""
        return self.estimates.needed_ms(ticket.size, self.now())

    def _too_late(self, ticket: Ticket) -> ApiError:
        """The refusal of a late request; only if it had to wait may another try succeed."""
        needed_ms = self._needed_ms(ticket)
        takes = f"the cheapest takes about {needed_ms:.0f} ms"
        within = f"within {ticket.budget_ms:g} ms"
        if needed_ms > ticket.budget_ms:
            message = f"no configuration answers this {within}: {takes}. Give a larger budget"
            return invalid(message, "latency_budget_ms", code="budget_too_short")
        reason = f"no configuration answers this {within} now: {takes}, after a wait"
        return self._refusal("busy", reason)

    def _queue_full(self) -> ApiError:
        return self._refusal("queue_full", "the queue is full")

    def _refusal(self, code: str, reason: str) -> ApiError:
        wait_ms = self.expected_wait_ms()
        message = f"{reason}; {self.num_waiting} requests wait, about {wait_ms:.0f} ms"
        return ApiError(429, message, code=code, retry_after_s=wait_ms / 1e3)

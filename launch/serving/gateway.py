"""Requests on their way through the queue to a replica and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from launch.serving.admission import Admission, Answered, Ticket
from launch.serving.episodes import (
    CHEAPEST,
    EpisodeRequest,
    EpisodeResult,
    ReplicaFacts,
    ReplicaLostError,
    Replicas,
)
from launch.serving.errors import ApiError
from launch.serving.estimates import RequestSize
from launch.serving.limits import Limits
from launch.serving.requests import Question
from launch.serving.responses import Served
from launch.serving.watching import Watcher

log = logging.getLogger(__name__)

MAX_LOSSES = 2
"""Number of replicas that a request may lose before it fails."""


class Reports(asyncio.Queue[str | Served | ApiError]):
    """What is sent to the client: pieces of text, and an end.

    Attributes:
        has_text: whether there was a piece of text.
        is_abandoned: whether the client left before the end.
    """

    has_text = False
    is_abandoned = False

    def put_text(self, piece: str) -> None:
        """Adds a piece of text; an empty one says that the episode has begun."""
        self.has_text = self.has_text or piece != ""
        self.put_nowait(piece)


class Gateway:
    """Takes questions, lets them wait for a free replica, and passes their answers on.

    Args:
        replicas: the replicas.
        admission: the queue.
        limits: limits of one request.
        watcher: informed of every request.
    """

    def __init__(
        self, replicas: Replicas, admission: Admission, limits: Limits, watcher: Watcher
    ) -> None:
        self.replicas, self.admission = replicas, admission
        self.limits, self.watcher = limits, watcher
        self.known: ReplicaFacts | None = None
        self._episodes: set[asyncio.Task[None]] = set()

    async def refresh(self) -> None:
        """Asks how many replicas there are, and the first one about itself."""
        if self.known is None:
            self.known = await self.replicas.facts()
            self.admission.estimates.start(self.known.cheapest)
            self.admission.pricing.start(self.known.price, self.known.price_curve)
        self.admission.resize(await self.replicas.count())
        self.watch()

    def watch(self) -> None:
        """Tells the watcher the state of the queue."""
        self.watcher.queue(
            num_waiting=self.admission.num_waiting,
            num_running=self.admission.num_running,
            num_replicas=self.admission.num_replicas,
        )

    def facts(self) -> ReplicaFacts:
        """What the replicas offer.

        Raises:
            ApiError: 503, because none has started yet.
        """
        if self.known is None:
            message = "the model is being loaded: try again"
            raise ApiError(503, message, code="starting", retry_after_s=5)
        return self.known

    async def ask(self, question: Question, arrived_s: float) -> AsyncGenerator[str | Served, None]:
        """Yields an empty text once the episode has begun, its text, then all facts about it.

        A client that leaves gives up its place in the queue. An episode that has begun runs to its
        end, and occupies its replica until then.

        Raises:
            ApiError: the request is refused, or failed.
        """
        turn, reports = asyncio.Event(), Reports()
        ticket = Ticket(
            policy=question.model,
            budget_ms=question.budget_ms,
            price=question.price,
            size=RequestSize.of(question.image_size, question.text),
            arrived_s=arrived_s,
            on_turn=turn.set,
        )
        self.admission.arrive(ticket)
        episode = asyncio.create_task(self._serve(question, ticket, turn, reports))
        self._episodes.add(episode)
        episode.add_done_callback(self._episodes.discard)
        is_ended = False
        try:
            while True:
                report = await reports.get()
                is_ended = not isinstance(report, str)
                if isinstance(report, ApiError):
                    raise report
                yield report
                if is_ended:
                    return
        finally:
            if not is_ended:
                reports.is_abandoned = True
                self.watcher.refused(question.model, "abandoned")
            if ticket.begun_s is None:
                episode.cancel()

    async def _serve(
        self, question: Question, ticket: Ticket, turn: asyncio.Event, reports: Reports
    ) -> None:
        """Brings one request to its end, and always reports one."""
        try:
            served = await self._outlive_replicas(question, ticket, turn, reports)
            if not reports.is_abandoned:
                self.watcher.answered(question.model, served)
            reports.put_nowait(served)
        except ApiError as error:
            reports.put_nowait(error)
        except Exception:
            log.exception("a request failed")
            message = "the server failed to answer: try again"
            reports.put_nowait(ApiError(500, message, code="internal_error"))
        finally:
            self.admission.leave(ticket)

    async def _outlive_replicas(
        self, question: Question, ticket: Ticket, turn: asyncio.Event, reports: Reports
    ) -> Served:
        """The answer, from another replica if one is lost and no text has been sent yet."""
        for _ in range(MAX_LOSSES):
            await self._wait(turn)
            try:
                return await self._episode(question, ticket, reports)
            except ReplicaLostError:
                self._lose_replica()
                if question.is_streamed and reports.has_text:
                    break
                turn.clear()
                self.admission.wait_again(ticket)
        message = "the replica that was answering died: try again"
        raise ApiError(503, message, code="replica_lost", retry_after_s=1)

    def _lose_replica(self) -> None:
        self.admission.resize(max(0, self.admission.num_replicas - 1))

    async def _wait(self, turn: asyncio.Event) -> None:
        seconds = self.limits.wait_timeout_s
        try:
            await asyncio.wait_for(turn.wait(), seconds)
        except TimeoutError:
            message = f"no replica was free for {seconds:g} s: try again later"
            raise ApiError(503, message, code="wait_timeout", retry_after_s=seconds) from None

    async def _episode(self, question: Question, ticket: Ticket, reports: Reports) -> Served:
        terms = self.admission.begin(ticket)
        request = EpisodeRequest(
            policy=CHEAPEST if ticket.is_late else question.model,
            text=question.text,
            image=question.image,
            budget_ms=terms.budget_ms,
            price=terms.price,
            max_new_tokens=question.max_new_tokens,
        )
        seconds = self.limits.episode_timeout_s
        try:
            async with asyncio.timeout(seconds):
                result = await self._pass_on(request, reports)
        except TimeoutError:
            # The replica is still at it: its place comes back when it is free, or restarted.
            self._lose_replica()
            message = f"the answer was not complete after {seconds:g} s"
            raise ApiError(504, message, code="episode_timeout") from None
        self.admission.observe(
            ticket,
            Answered(
                price=terms.price,
                latency_ms=result.latency_ms,
                wall_ms=result.wall_ms,
                is_cheapest=result.is_cheapest,
                is_whole=result.finished or question.max_new_tokens is None,
            ),
        )
        return Served(
            result=result,
            budget_ms=question.budget_ms,
            waited_ms=self.admission.waited_ms(ticket),
            total_ms=1e3 * (self.admission.now() - ticket.arrived_s),
            is_late=ticket.is_late,
        )

    async def _pass_on(self, request: EpisodeRequest, reports: Reports) -> EpisodeResult:
        """Reports the pieces of text as they come; returns the result."""
        async for report in self.replicas.stream(request):
            if isinstance(report, EpisodeResult):
                return report
            reports.put_text(report)
        raise ReplicaLostError

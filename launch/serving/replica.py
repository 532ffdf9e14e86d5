"""One replica: a model on a device, with one episode in flight."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from launch.answering.answerer import Answer, Answerer, as_sample
from launch.answering.policy_set import PolicySet
from launch.serving.episodes import CHEAPEST, EpisodeRequest, EpisodeResult, ReplicaFacts
from launch.serving.errors import invalid
from launch.serving.estimates import (
    LONG_PROMPT_CHARS,
    REQUEST_SIZES,
    CheapestTimes,
    RequestSize,
)
from launch.serving.images import open_within
from launch.serving.limits import Limits

BEGUN = ""
"""Reported when the request has proved to be sound, before its first token."""

IDLE_S = 0.5
"""A device is probed only after this long without a request."""

PROMPT = "what is it"
LONG_PROMPT = (PROMPT + " ") * (LONG_PROMPT_CHARS // len(PROMPT))

UNLIMITED_MS = 1e6
"""A budget that everything meets."""


class Replica:
    """Answers one question at a time, in one thread, which the device's clock needs.

    Args:
        load: loads the policies, in that thread.
        limits: limits of one request; an episode that takes longer than its own counts as stuck.
        price: price of requests that state none; None for the one that the controller was trained
            to be deployed with.
    """

    def __init__(
        self,
        load: Callable[[], PolicySet],
        limits: Limits,
        price: float | None = None,
    ) -> None:
        self._thread = ThreadPoolExecutor(1, "episodes")
        self._limits, self._price = limits, price
        self._started_s: float | None = None
        self._num_begun = 0
        self.busy_s = 0.0
        self._asked_s = time.monotonic()
        self.policies = self._thread.submit(load).result()
        self.facts = self._thread.submit(self._measure).result()

    def check_alive(self) -> None:
        """Raises RuntimeError if an episode is stuck."""
        started_s, limit_s = self._started_s, self._limits.episode_timeout_s
        if started_s is not None and time.monotonic() - started_s > limit_s:
            raise RuntimeError(f"an episode takes longer than {limit_s:g} s")

    @property
    def is_idle(self) -> bool:
        """Whether an episode could begin at once."""
        return self._num_begun == 0

    async def stream(self, request: EpisodeRequest) -> AsyncIterator[str | EpisodeResult]:
        """Yields an empty text once the image is read, the text as it is decoded, and the result.

        Raises:
            ApiError: the question cannot be answered.
        """
        loop, reports = asyncio.get_running_loop(), asyncio.Queue[str | int | None]()
        self._asked_s = asked_s = time.monotonic()
        self.facts.check_known(request.policy)
        answerer = self.policies.answerer(request.policy)

        def episode() -> Answer:
            # A probe may have delayed it.
            late_ms = 1e3 * (time.monotonic() - asked_s)
            left_ms = max(request.budget_ms - late_ms, 1.0)
            return self._run(answerer, replace(request, budget_ms=left_ms), tell)

        def tell(report: str | int) -> None:
            loop.call_soon_threadsafe(reports.put_nowait, report)

        def end(_episode: object) -> None:
            self._num_begun -= 1
            reports.put_nowait(None)

        self._num_begun += 1
        ended = loop.run_in_executor(self._thread, episode)
        ended.add_done_callback(end)
        pieces = answerer.pieces()
        while (report := await reports.get()) is not None:
            if isinstance(report, str):
                yield report
            elif piece := pieces.add(report):
                yield piece
        answer = await ended
        if rest := pieces.rest(answer.text):
            yield rest
        yield as_result(answer)
        loop.call_later(IDLE_S, self._follow_if_idle)

    def _run(
        self, answerer: Answerer, request: EpisodeRequest, tell: Callable[[str | int], object]
    ) -> Answer:
        self._started_s = started_s = time.monotonic()
        try:
            encoded = request.image
            image = None if encoded is None else open_within(encoded, self._limits.megapixels)
            tell(BEGUN)
            return answerer.run(
                as_sample(request.text, image),
                answerer.terms(request.budget_ms, request.price),
                max_new_tokens=request.max_new_tokens,
                on_token=tell,
            )
        except ValueError as error:
            raise invalid(str(error), "messages") from None
        finally:
            self._started_s = None
            self.busy_s += time.monotonic() - started_s

    def _follow_if_idle(self) -> None:
        if time.monotonic() - self._asked_s >= IDLE_S and self._started_s is None:
            self._thread.submit(self.policies.answerer(self.policies.default).follow)

    def _measure(self) -> ReplicaFacts:
        """Measures the cheapest configuration on the smallest request of every size."""
        times_ms = {size: self._cheapest_ms(size) for size in REQUEST_SIZES}
        return ReplicaFacts(
            policies=self.policies.names,
            cheapest=CheapestTimes(by_size_ms=times_ms),
            budget_range_ms=self.policies.budget_range_ms(),
            price=self.policies.default_price if self._price is None else self._price,
            price_curve=self.policies.price_curve,
        )

    def _cheapest_ms(self, size: RequestSize) -> float:
        """Median of three runs."""
        cheapest, pixels = self.policies.answerer(CHEAPEST), size.image.smallest
        image = None if pixels is None else Image.new("RGB", pixels, "grey")
        prompt = LONG_PROMPT if size.has_long_prompt else PROMPT
        terms = cheapest.terms(UNLIMITED_MS)
        runs = [cheapest.run(as_sample(prompt, image), terms).latency_ms for _ in range(3)]
        return sorted(runs)[1]


def as_result(answer: Answer) -> EpisodeResult:
    """The answer without what only a model's process can read."""
    return EpisodeResult(
        text=answer.text,
        knobs=answer.knobs,
        decided_by=answer.decided_by,
        stages_ms=dict(answer.stages_ms),
        latency_ms=answer.latency_ms,
        wall_ms=answer.wall_ms,
        host_ms=answer.host_ms,
        clock=answer.clock,
        finished=answer.finished,
        num_output_tokens=answer.num_output_tokens,
        num_prompt_tokens=answer.num_prompt_tokens,
        price=answer.price,
    )

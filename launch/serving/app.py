"""The HTTP interface: OpenAI's chat completions, a page, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from launch.serving.body import BoundedBodies
from launch.serving.errors import ApiError
from launch.serving.gateway import Gateway
from launch.serving.local_names import LocalNamesOnly
from launch.serving.requests import Question, parse_question
from launch.serving.responses import DONE, ResponseHead, Served, event
from launch.serving.token import TokenOnly

log = logging.getLogger(__name__)

REFRESH_S = 1.0
"""Interval at which the gateway asks how many replicas there are."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""The page loads nothing from elsewhere and is shown in no frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """What the interface needs besides the gateway.

    Attributes:
        page: the page, as HTML.
        default_budget_ms: budget of requests that do not state one, in ms.
        token: token that requests must carry; empty if none is needed, on the loopback address.
        metrics: returns the metrics in Prometheus' text format.
    """

    page: str
    default_budget_ms: float
    token: str
    metrics: Callable[[], Awaitable[str]]


def build_app(gateway: Gateway, config: AppConfig) -> Starlette:
    """The ASGI application; its lifespan keeps the gateway informed about its replicas."""
    interface = Interface(gateway, config)
    on_refusal = partial(gateway.watcher.refused, "")
    guard = (
        Middleware(TokenOnly, token=config.token, on_refusal=on_refusal)
        if config.token
        else Middleware(LocalNamesOnly)
    )
    return Starlette(
        routes=[
            Route("/", interface.page),
            Route("/healthz", interface.health),
            Route("/health", interface.health),
            Route("/metrics", interface.metrics),
            Route("/v1/models", interface.models),
            Route("/v1/models/{name}", interface.model),
            Route("/v1/chat/completions", interface.chat, methods=["POST"]),
        ],
        middleware=[guard, Middleware(BoundedBodies, limits=gateway.limits)],
        exception_handlers={
            ApiError: interface.refuse,
            HTTPException: interface.refuse_http,
            Exception: interface.fail,
        },
        lifespan=interface.lifespan,
    )


class Interface:
    """The handlers of all routes."""

    def __init__(self, gateway: Gateway, config: AppConfig) -> None:
        self.gateway, self.config = gateway, config
        self.started_s = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Refreshes the gateway from time to time."""
        refreshing = asyncio.create_task(self._keep_refreshing())
        yield
        refreshing.cancel()

    async def _keep_refreshing(self) -> None:
        while True:
            try:
                await self.gateway.refresh()
            except Exception as error:  # the cluster may be out of reach for a while
                log.warning("the replicas could not be asked: %s", error)
            await asyncio.sleep(REFRESH_S)

    async def page(self, _request: Request) -> Response:
        """The page, which needs no token to be shown."""
        return HTMLResponse(self.config.page, headers=SECURITY_HEADERS)

    async def health(self, _request: Request) -> Response:
        """200 if a question could be answered now, otherwise 503."""
        num_replicas = self.gateway.admission.num_replicas
        is_ready = self.gateway.known is not None and num_replicas > 0
        body = {"status": "ok" if is_ready else "unavailable", "replicas": num_replicas}
        return JSONResponse(body, 200 if is_ready else 503)

    async def metrics(self, _request: Request) -> Response:
        """All metrics of the cluster's nodes that are this project's."""
        return PlainTextResponse(
            await self.config.metrics(), media_type="text/plain; version=0.0.4"
        )

    async def models(self, _request: Request) -> Response:
        """The policies, as models; the first one is the default of the page."""
        names = self.gateway.facts().policies
        return JSONResponse({"object": "list", "data": [self._model_json(n) for n in names]})

    async def model(self, request: Request) -> Response:
        """One policy, or one configuration."""
        name = request.path_params["name"]
        self.gateway.facts().check_known(name)
        return JSONResponse(self._model_json(name))

    def _model_json(self, name: str) -> dict[str, object]:
        owner = "latency-budget-grpo"
        return {
            "id": name,
            "object": "model",
            "created": self.started_s,
            "owned_by": owner,
            "budget_range_ms": self.gateway.facts().budget_range_ms,
            "price": self.gateway.facts().price,
        }

    async def chat(self, request: Request) -> Response:
        """Answers one question."""
        arrived_s = self.gateway.admission.now()
        model = ""
        try:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, "send application/json", code="unsupported_media_type")
            question = parse_question(
                await request.body(), self.gateway.limits, self.config.default_budget_ms
            )
            self.gateway.facts().check_known(question.model)
            model = question.model
            asked = self.gateway.ask(question, arrived_s)
            head = ResponseHead(
                id=f"chatcmpl-{uuid.uuid4().hex}", created_s=int(time.time()), model=model
            )
            if question.is_streamed:
                return await self._streamed(question, head, asked)
            async with contextlib.aclosing(asked) as reports:
                async for report in reports:
                    if isinstance(report, Served):
                        return JSONResponse(head.completion(report))
            raise AssertionError("an answer ends with what was served, or an error")
        except ApiError as error:
            self.gateway.watcher.refused(model, error.code)
            raise

    async def _streamed(
        self, question: Question, head: ResponseHead, asked: AsyncGenerator[str | Served, None]
    ) -> Response:
        """Waits until the episode has begun, so that a refusal has its status."""
        first = await anext(asked)

        async def events() -> AsyncIterator[str]:
            yield head.first_event()
            if first:
                yield _event_of(head, first)
            try:
                async with contextlib.aclosing(asked) as reports:
                    async for report in reports:
                        if report:
                            yield _event_of(head, report)
            except ApiError as error:
                self.gateway.watcher.refused(question.model, error.code)
                yield event(error.to_json())
            yield DONE

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    async def refuse(self, _request: Request, error: Exception) -> Response:
        """An error of a request."""
        assert isinstance(error, ApiError)
        return JSONResponse(error.to_json(), error.status, headers=error.headers())

    async def refuse_http(self, request: Request, error: Exception) -> Response:
        """An unknown path or method."""
        assert isinstance(error, HTTPException)
        message = f"there is no {request.method} {request.url.path[:200]}"
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        refusal = ApiError(error.status_code, message, code=code)
        return JSONResponse(refusal.to_json(), refusal.status, headers=error.headers)

    async def fail(self, _request: Request, error: Exception) -> Response:
        """Any unexpected error: it is logged, and the client gets no details."""
        refusal = ApiError(500, "the server failed: try again", code="internal_error")
        return JSONResponse(refusal.to_json(), refusal.status)


def _event_of(head: ResponseHead, report: str | Served) -> str:
    return head.last_event(report) if isinstance(report, Served) else head.text_event(report)

"""Where a replica takes questions: HTTP, for the gateway alone."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from launch.serving.episodes import EpisodeRequest, EpisodeResult
from launch.serving.errors import ApiError
from launch.serving.wire import KEY_HEADER, PATH, decode_request, encode_report

log = logging.getLogger(__name__)

Stream = Callable[[EpisodeRequest], AsyncIterator[str | EpisodeResult]]


def replica_app(stream: Stream, key: str) -> Starlette:
    """The ASGI application; see `launch.serving.wire`.

    Args:
        stream: runs an episode; see `Replica.stream`.
        key: key that questions must carry.
    """

    async def episode(request: Request) -> Response:
        given = request.headers.get(KEY_HEADER, "")
        if not hmac.compare_digest(given.encode(), key.encode()):
            return Response(status_code=403)  # before its body is read
        try:
            asked = decode_request(await request.body())
        except ValueError:
            return Response(status_code=400)
        return StreamingResponse(_lines(stream(asked)), media_type="application/x-ndjson")

    return Starlette(routes=[Route(PATH, episode, methods=["POST"])])


async def _lines(reports: AsyncIterator[str | EpisodeResult]) -> AsyncIterator[bytes]:
    try:
        async for report in reports:
            yield encode_report(report)
    except ApiError as error:
        yield encode_report(error)
    except Exception:
        log.exception("an episode failed")
        failed = ApiError(500, "the server failed to answer: try again", code="internal_error")
        yield encode_report(failed)

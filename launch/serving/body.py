"""Reads request bodies within limits of size and time, before anything else sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from launch.serving.errors import ApiError
from launch.serving.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete."""


class BoundedBodies:
    """ASGI middleware: the application gets complete bodies, large and slow requests an error.

    Args:
        app: the application.
        limits: limits of one request.
    """

    def __init__(self, app: AsgiApp, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self._held_bytes = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Reads the body, then calls the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        parts: list[bytes] = []
        try:
            if not await self._is_read(scope, receive, send, parts):
                return
            parts[:] = [b"".join(parts)]
            unread = [{"type": "http.request", "body": parts[0], "more_body": False}]

            async def replay() -> Message:
                return unread.pop() if unread else await receive()

            await self.app(scope, replay, send)
        finally:
            self._held_bytes -= sum(map(len, parts))

    async def _is_read(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, parts: list[bytes]
    ) -> bool:
        """Whether the body has been read into `parts`; if not, the client has been told why."""
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                await self._read(scope, receive, parts)
            return True
        except ClientGoneError:
            pass
        except TimeoutError:
            seconds = f"{self.limits.body_timeout_s:g} s"
            message = f"the request was not complete after {seconds}: send it faster"
            await refuse(send, ApiError(408, message, code="request_timeout"))
        except ApiError as error:
            await refuse(send, error)
        return False

    async def _read(
        self, scope: MutableMapping[str, Any], receive: Receive, parts: list[bytes]
    ) -> None:
        """Appends the parts of a body as they come."""
        limit = self.limits.body_bytes
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > limit:
            raise self._too_large()
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise self._too_large()
            if self._held_bytes + len(part) > self.limits.all_bodies_bytes:
                message = "the server holds as many requests as it has room for: try again"
                raise ApiError(503, message, code="out_of_room", retry_after_s=1)
            self._held_bytes += len(part)
            parts.append(part)
            if not message.get("more_body", False):
                return

    def _too_large(self) -> ApiError:
        message = f"the request is larger than {self.limits.body_mib:g} MiB: send a smaller image"
        return ApiError(413, message, code="request_too_large")


async def refuse(send: Send, error: ApiError) -> None:
    """Answers with an error and closes the connection, so that the rest is not read."""
    headers = {"content-type": "application/json", "connection": "close", **error.headers()}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": json.dumps(error.to_json()).encode()})

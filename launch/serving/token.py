"""Refuses requests without the server's token by their headers, before any body is read."""

from __future__ import annotations

import hmac
from collections.abc import Callable, MutableMapping
from typing import Any

from launch.serving.body import AsgiApp, Receive, Send, refuse
from launch.serving.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health", "/healthz"})
"""What needs no token: the page, which asks for it, and whether the server is ready."""


class TokenOnly:
    """ASGI middleware: requests must carry the token.

    Args:
        app: the application.
        token: the token.
        on_refusal: called with the code of each refusal.
    """

    def __init__(self, app: AsgiApp, token: str, on_refusal: Callable[[str], object]) -> None:
        self.app, self.on_refusal = app, on_refusal
        self._expected = f"bearer {token}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Checks the token, then calls the application."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            scheme, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            given = scheme.lower() + b" " + token.strip()
            if not hmac.compare_digest(given, self._expected):
                message = "the token is missing or wrong: send Authorization: Bearer TOKEN"
                error = ApiError(401, message, code="invalid_api_key")
                self.on_refusal(error.code)
                await refuse(send, error)
                return
        await self.app(scope, receive, send)

"""Refuses requests that a browser sends for another site, to a server without a token.

A page elsewhere may make its name point to this machine (DNS rebinding), and then counts as the
same site as the server. The host name that the browser sends tells them apart.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from launch.serving.body import AsgiApp, Receive, Send, refuse
from launch.serving.config import is_loopback
from launch.serving.errors import ApiError


class LocalNamesOnly:
    """ASGI middleware: the host must be a loopback address or localhost.

    Args:
        app: the application.
    """

    def __init__(self, app: AsgiApp) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Checks the host, then calls the application."""
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not is_local_name(host):
                message = "the host of this address is not a loopback one: use 127.0.0.1"
                await refuse(send, ApiError(421, message, code="misdirected_request"))
                return
        await self.app(scope, receive, send)


def is_local_name(host: str) -> bool:
    """Whether a Host header, with or without a port, names this machine itself."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False

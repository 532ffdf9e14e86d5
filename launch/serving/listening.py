"""Serves an application over HTTP within a process that does other things as well."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

IDLE_TIMEOUT_S = 75.0
"""How long a connection may be idle between two requests, in seconds."""


class _Server(uvicorn.Server):
    """Leaves the process's signals to whoever owns the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing."""
        yield


@asynccontextmanager
async def listening(
    app: ASGIApp, host: str, port: int = 0, *, drain_s: float
) -> AsyncIterator[int]:
    """Takes requests until the block ends, and then finishes those that are running.

    Args:
        app: the application; its lifespan is not run.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        drain_s: time limit for running requests at the end, in seconds.

    Yields:
        The port.

    Raises:
        ValueError: the address cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be listened on: {error.strerror}") from None
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(IDLE_TIMEOUT_S),
        timeout_graceful_shutdown=int(drain_s) or 1,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await running

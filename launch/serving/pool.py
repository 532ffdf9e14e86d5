"""The replicas that are there, each behind a connection of its own.

Ray Serve keeps replicas alive and counts them. Questions and answers do not pass through it: that
would cost several milliseconds a request, and more for each token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import aiohttp

from launch.serving.episodes import EpisodeRequest, EpisodeResult, ReplicaFacts, ReplicaLostError
from launch.serving.errors import ApiError
from launch.serving.wire import KEY_HEADER, PATH, decode_report, encode_request

REGISTER_S = 1.0
"""How often a replica says that it is there."""

FORGET_S = 10.0
"""A replica that has not been heard of for so long is not asked any more."""

CONNECT_TIMEOUT_S = 2.0


class ReplicaPool:
    """Replicas that have registered; implements `launch.serving.episodes.Replicas`.

    All methods run on one event loop.

    Args:
        key: key of this server, which its replicas know.
        now: the clock, in seconds.
    """

    def __init__(self, key: str, now: Callable[[], float] = time.monotonic) -> None:
        self._headers, self._now = {KEY_HEADER: key}, now
        self._seen_s: dict[str, float] = {}
        self._busy: set[str] = set()
        self._facts: ReplicaFacts | None = None
        self._is_known = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    def register(self, address: str, facts: ReplicaFacts, *, is_idle: bool) -> bool:
        """Hears of a replica; returns whether it is a new one.

        Args:
            address: host and port where it takes questions.
            facts: what it says about itself.
            is_idle: whether it could begin an episode at once. One that is not idle becomes a new
                one only when it is: it is still at an episode that was given up.
        """
        is_new = address not in self._seen_s
        if is_new and not is_idle:
            return False
        self._seen_s[address] = self._now()
        self._facts = self._facts or facts
        self._is_known.set()
        return is_new

    async def facts(self) -> ReplicaFacts:
        """See `Replicas.facts`."""
        await self._is_known.wait()
        assert self._facts is not None
        return self._facts

    async def count(self) -> int:
        """See `Replicas.count`."""
        oldest_s = self._now() - FORGET_S
        for address in [a for a, seen_s in self._seen_s.items() if seen_s < oldest_s]:
            if address not in self._busy:
                del self._seen_s[address]
        return len(self._seen_s)

    async def stream(self, request: EpisodeRequest) -> AsyncIterator[str | EpisodeResult]:
        """See `Replicas.stream`; a replica whose episode does not end here counts as lost."""
        address = next((a for a in self._seen_s if a not in self._busy), None)
        if address is None:
            raise ReplicaLostError("no replica is free")
        self._busy.add(address)
        is_ended = False
        try:
            async for line in self._lines(address, encode_request(request)):
                report = decode_report(line)
                is_ended = not isinstance(report, str)
                if isinstance(report, ApiError):
                    raise report
                yield report
                if is_ended:
                    return
            raise ReplicaLostError(f"{address} closed the connection")
        except (aiohttp.ClientError, OSError) as error:
            raise ReplicaLostError(f"{address}: {error}") from error
        finally:
            self._busy.discard(address)
            if not is_ended:
                self._seen_s.pop(address, None)

    async def _lines(self, address: str, body: bytes) -> AsyncIterator[bytes]:
        if self._session is None:
            # Episodes have a time limit of their own.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        url = f"http://{address}{PATH}"
        async with self._session.post(url, data=body) as reply:
            reply.raise_for_status()
            async for line in reply.content:
                yield line

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            with suppress(aiohttp.ClientError, OSError):
                await self._session.close()

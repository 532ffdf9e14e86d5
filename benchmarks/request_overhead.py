"""What a request to a running server costs beyond its episode, with one client and no other load.

    python launch/serve.py --scaling.replicas 1
    python -m benchmarks.request_overhead

The time at the client, from before it sends a request until it has the whole answer, less the wall
time of the episode, which the answer states. Plain and streamed requests take turns. `--quick`
needs no server: it asks a stand-in of its own.
"""

import sys
from dataclasses import dataclass, replace

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadConfig:
    """One measurement.

    Attributes:
        quick: few requests to a stand-in for a server, to see within a minute that it runs.
        url: address of the server.
        model: model that is asked.
        num_requests: number of requests of each kind.
        num_warm_up: number of requests before them.
        num_samples: number of questions of the test split, asked in turns.
        budget_ms: budget of each request, in ms.
        give_up_s: time after which a request has failed, in seconds.
    """

    quick: bool = False
    url: str = "http://127.0.0.1:8000"
    model: str = "controller"
    num_requests: int = 150
    num_warm_up: int = 20
    num_samples: int = 50
    budget_ms: float = 100.0
    give_up_s: float = 20.0


QUICK = OverheadConfig(quick=True, num_requests=5, num_warm_up=1, num_samples=4)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import asyncio
import json
import time
from contextlib import nullcontext

import aiohttp
import numpy as np

from benchmarks.goodput import Arrival, Questions, stand_in_server

KINDS = {"plain": False, "streamed": True}
"""Whether the answer is streamed, by the name of the kind of request."""


async def measure(config: OverheadConfig) -> dict[str, np.ndarray]:
    """The times beyond the episodes by kind of request, in ms, and those of whole requests."""
    questions = Questions(config.num_samples)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    timeout = aiohttp.ClientTimeout(total=config.give_up_s)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for number in range(config.num_warm_up + config.num_requests):
            arrival = Arrival(
                due_s=0.0, number=number % config.num_samples, budget_ms=config.budget_ms
            )
            body = json.loads(questions.body(arrival, config.model))
            for kind, is_streamed in KINDS.items():
                times = await _ask(session, config.url, {**body, "stream": is_streamed})
                if number >= config.num_warm_up:
                    found[kind].append(times)
    return {kind: np.array(times) for kind, times in found.items()}


async def _ask(session: aiohttp.ClientSession, url: str, body: object) -> tuple[float, float]:
    """Time of a request beyond its episode, and in all, in ms."""
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    started_s = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", data=data, headers=headers) as reply:
        content = await reply.text()
    total_ms = 1e3 * (time.perf_counter() - started_s)
    if reply.status != 200:
        raise RuntimeError(f"the server answered {reply.status}: {content[:300]}")
    if reply.content_type == "text/event-stream":
        last, _done = content.strip().split("\n\n")[-2:]
        content = last.removeprefix("data: ")
    return total_ms - json.loads(content)["latency_budget"]["wall_ms"], total_ms


async def run(config: OverheadConfig) -> None:
    """Measures and prints."""
    async with stand_in_server() if config.quick else nullcontext(config.url) as url:
        times = await measure(replace(config, url=url))
    for kind, pairs in times.items():
        low, median, high = np.percentile(pairs[:, 0], (10, 50, 90))
        print(
            f"{kind:8} {median:6.1f} ms beyond the episode [p10 {low:.1f}, p90 {high:.1f}], "
            f"of {np.median(pairs[:, 1]):.1f} ms in all, {len(pairs)} requests"
        )


def main() -> int:
    """Runs the measurement."""
    asyncio.run(run(read_options(QUICK, __doc__)))
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

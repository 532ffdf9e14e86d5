"""Goodput of a running server under rising load: right answers within budget per second.

    python launch/serve.py RUN --queue.late refuse --scaling.replicas 1
    python -m benchmarks.goodput --rates 4 8 12 16 20 --budgets-ms 100 200 400

Requests arrive by a Poisson process, whether or not earlier ones were answered (open loop). Every
policy gets the same questions, budgets and arrival times at a rate, on the same server, in turns of
a few seconds; intervals are over the turns. The best of the fixed configurations is found for each
rate in hindsight. Latency is measured here, at the client: from the moment a request is due to the
end of its answer. Requests that were answered late or wrongly, refused, that failed, and that the
client gave up are counted apart. With `--jump-to` the rate jumps in the middle third of each turn,
and each third is printed by itself as well. `--quick` needs no server: it asks a stand-in of its
own, which always gives the same answer.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputConfig:
    """One load test.

    Attributes:
        quick: few requests to a stand-in for a server, to see within a minute that it runs.
        url: address of the server.
        policies: models that are compared, besides the fixed configurations.
        fixed: fixed configurations, the best of which is found for each rate in hindsight.
        rates: requests per second.
        jump_to: requests per second in the middle third of each turn; None keeps the rate.
        budgets_ms: budgets of the mixture, equally frequent.
        turn_s: length of one turn of a policy, in seconds.
        turns: number of turns of each policy at each rate.
        pause_s: pause between two turns, so that no queue carries over.
        num_samples: number of questions of the test split, drawn with replacement.
        give_up_s: time after which a client gives up on a request, in seconds.
        seed: seed of arrivals, questions and budgets.
        output: figure; the numbers are written next to it, as .json.
    """

    quick: bool = False
    url: str = "http://127.0.0.1:8000"
    policies: tuple[str, ...] = ("controller", "lookup")
    fixed: tuple[str, ...] = ("full", "medium-p1-k5-b16", "low-p1-k7-b14", "cheapest")
    rates: tuple[float, ...] = (4.0, 8.0, 12.0, 16.0, 20.0, 24.0)
    jump_to: float | None = None
    budgets_ms: tuple[float, ...] = (100.0, 200.0, 400.0)
    turn_s: float = 15.0
    turns: int = 4
    pause_s: float = 1.5
    num_samples: int = 200
    give_up_s: float = 20.0
    seed: int = 0
    output: Path = Path("goodput.png")


QUICK = GoodputConfig(
    quick=True,
    policies=("controller",),
    fixed=("full", "cheapest"),
    rates=(10.0,),
    turn_s=0.5,
    turns=2,
    pause_s=0.1,
    num_samples=4,
    output=Path(tempfile.gettempdir()) / "goodput-quick.png",
)

THIRDS = 3


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace

import aiohttp
import numpy as np
from aiohttp import web
from rich.console import Console

from benchmarks.goodput_report import Outcome, Reply, Row, figure_of, table_of, verdict
from envs.scoring import score_of
from envs.spec import Sample, Task
from envs.tasks import build_tasks
from launch.cluster.progress import counted
from launch.serving.page import data_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of the schedule: when it is due, what it asks, within which budget."""

    due_s: float
    number: int
    budget_ms: float


class Questions:
    """Questions of the test split, encoded once."""

    def __init__(self, num_samples: int) -> None:
        self.tasks: Task = build_tasks()
        self.samples = [self.tasks.sample("test", index) for index in range(num_samples)]
        self._contents = [_content(sample) for sample in self.samples]

    def body(self, arrival: Arrival, policy: str) -> bytes:
        """The request of an arrival."""
        content = self._contents[arrival.number]
        message = {"role": "user", "content": content}
        budget = {"latency_budget_ms": arrival.budget_ms}
        return json.dumps({"model": policy, "messages": [message], **budget}).encode()

    def score(self, arrival: Arrival, answer: str) -> float:
        """Score of an answer."""
        return score_of(self.tasks, self.samples[arrival.number], answer)


def _content(sample: Sample) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [{"type": "text", "text": sample.prompt}]
    if sample.image is not None:
        parts.append({"type": "image_url", "image_url": {"url": data_url(sample.image)}})
    return parts


def schedule(config: GoodputConfig, rate: float, turn: int) -> list[Arrival]:
    """The arrivals of one turn, the same for every policy."""
    rng = np.random.default_rng([config.seed, round(1000 * rate), turn])
    between = rate if config.jump_to is None else config.jump_to
    part_s, arrivals = config.turn_s / THIRDS, []
    for part, part_rate in enumerate((rate, between, rate)):
        due_s = rng.exponential(1 / part_rate)
        while due_s < part_s:
            arrivals.append(
                Arrival(
                    due_s=part * part_s + due_s,
                    number=int(rng.integers(config.num_samples)),
                    budget_ms=float(rng.choice(config.budgets_ms)),
                )
            )
            due_s += rng.exponential(1 / part_rate)
    return arrivals


async def play(
    config: GoodputConfig, questions: Questions, policy: str, arrivals: Sequence[Arrival]
) -> list[Reply]:
    """Sends the requests of one turn when they are due, and waits for all replies."""
    timeout = aiohttp.ClientTimeout(total=config.give_up_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        started_s = time.perf_counter()

        async def one(arrival: Arrival) -> Reply:
            body = questions.body(arrival, policy)
            due_s = started_s + arrival.due_s
            await asyncio.sleep(due_s - time.perf_counter())
            outcome, answer = await _post(session, config.url, body)
            return Reply(
                outcome=outcome,
                score=questions.score(arrival, answer) if outcome == Outcome.ANSWERED else 0.0,
                latency_ms=1e3 * (time.perf_counter() - due_s),
                budget_ms=arrival.budget_ms,
                due_s=arrival.due_s,
            )

        return list(await asyncio.gather(*(one(arrival) for arrival in arrivals)))


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[Outcome, str]:
    headers = {"Content-Type": "application/json"}
    try:
        async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as reply:
            content = await reply.json()
            if reply.status == 200:
                return Outcome.ANSWERED, content["choices"][0]["message"]["content"]
            is_refused = reply.status == 429 or content["error"]["code"] == "budget_too_short"
            return (Outcome.REFUSED if is_refused else Outcome.FAILED), ""
    except TimeoutError:
        return Outcome.ABANDONED, ""
    except (aiohttp.ClientError, ValueError, KeyError):
        return Outcome.FAILED, ""


@asynccontextmanager
async def stand_in_server() -> AsyncIterator[str]:
    """A server that answers every question with the same word; yields its address."""

    async def answer(_request: web.Request) -> web.Response:
        choices = [{"message": {"content": "yes"}}]
        return web.json_response({"choices": choices, "latency_budget": {"wall_ms": 0.0}})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def rows_of(config: GoodputConfig, console: Console) -> list[Row]:
    """The measurement, with `--quick` on a stand-in server."""
    if not config.quick:
        return await measure(config, console)
    async with stand_in_server() as url:
        return await measure(replace(config, url=url), console)


async def measure(config: GoodputConfig, console: Console) -> list[Row]:
    """All policies at all rates, in turns."""
    questions = Questions(config.num_samples)
    names = tuple(dict.fromkeys((*config.policies, *config.fixed)))
    rows = []
    for rate in config.rates:
        turns: dict[str, list[list[Reply]]] = {policy: [] for policy in names}
        for turn in counted(range(config.turns), f"turns at {rate:g} requests per second"):
            arrivals = schedule(config, rate, turn)
            for policy in names:
                turns[policy].append(await play(config, questions, policy, arrivals))
                await asyncio.sleep(config.pause_s)
        new = [Row.of(policy, rate, found, config.turn_s) for policy, found in turns.items()]
        for row in new:
            console.print(row.line())
        if config.jump_to is not None:
            for policy, found in turns.items():
                for line in thirds(policy, found, config, rate):
                    console.print(line)
        rows += new
    return rows


def thirds(
    policy: str, turns: Sequence[Sequence[Reply]], config: GoodputConfig, rate: float
) -> list[str]:
    """What became of the requests of each third of the turns."""
    part_s, lines = config.turn_s / THIRDS, []
    for part in range(THIRDS):
        among = [[r for r in turn if part <= r.due_s / part_s < part + 1] for turn in turns]
        shown = rate if part != 1 or config.jump_to is None else config.jump_to
        lines.append(f"third {part + 1}: {Row.of(policy, shown, among, part_s).line()}")
    return lines


def main() -> int:
    """Runs the load test."""
    config = read_options(QUICK, __doc__)
    console = Console(soft_wrap=True, highlight=False)
    rows = asyncio.run(rows_of(config, console))
    figure_of(rows, config.budgets_ms).savefig(config.output, dpi=120)
    content = {"config": asdict(config) | {"output": ""}, "rows": [asdict(row) for row in rows]}
    config.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    console.print(table_of(rows, config.fixed))
    for line in verdict(rows, config.fixed):
        console.print(line)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

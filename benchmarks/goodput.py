"""Goodput of a running server under rising load: correct answers within budget per second.

    python launch/serve.py RUN --queue.late refuse --scaling.replicas 1
    python -m benchmarks.goodput --rates 1 2 4 6 --policies controller full cheapest static lookup

Requests arrive by a Poisson process, whether or not earlier ones were answered (open loop). Every
policy gets the same questions, budgets and arrival times at a rate, on the same server, in turns of
a few seconds. Latency is measured here, at the client: from the moment a request is due to the end
of its answer. A request misses its budget if its answer comes late, or not at all.
`--quick` needs no server: it asks a stand-in of its own, which always gives the same answer.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import aiohttp
import numpy as np
from aiohttp import web
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.options import read_options
from envs.scoring import score_of
from envs.spec import Sample, Task
from envs.tasks import build_tasks
from launch.cluster.console import one_clear_error
from launch.serving.page import data_url

GIVE_UP_S = 20.0
"""Time limit of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputConfig:
    """One load test.

    Attributes:
        quick: few requests to a stand-in for a server, to see within a minute that it runs.
        url: address of the server.
        policies: models that are compared.
        rates: requests per second.
        budgets_ms: budgets of the mixture, equally frequent.
        turn_s: length of one turn of a policy, in seconds.
        turns: number of turns of each policy at each rate.
        pause_s: pause between two turns, so that no queue carries over.
        num_samples: number of questions of the test split, drawn with replacement.
        seed: seed of arrivals, questions and budgets.
        output: figure; the numbers are written next to it, as .json.
    """

    quick: bool = False
    url: str = "http://127.0.0.1:8000"
    policies: tuple[str, ...] = ("controller", "full", "cheapest", "static", "lookup")
    rates: tuple[float, ...] = (1.0, 2.0, 4.0, 6.0, 8.0)
    budgets_ms: tuple[float, ...] = (150.0, 250.0, 500.0)
    turn_s: float = 15.0
    turns: int = 3
    pause_s: float = 1.5
    num_samples: int = 200
    seed: int = 0
    output: Path = Path("goodput.png")


QUICK = GoodputConfig(
    quick=True,
    policies=("controller", "full"),
    rates=(10.0,),
    turn_s=0.5,
    turns=1,
    pause_s=0.1,
    num_samples=4,
    output=Path(tempfile.gettempdir()) / "goodput-quick.png",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of the schedule: when it is due, what it asks, within which budget."""

    due_s: float
    number: int
    budget_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of a request: `answered`, `refused` (429) or `failed`."""

    outcome: str
    score: float
    latency_ms: float
    budget_ms: float

    @property
    def is_in_time(self) -> bool:
        """Whether an answer came within the budget."""
        return self.outcome == "answered" and self.latency_ms <= self.budget_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy at one rate.

    Attributes:
        goodput: sum of the scores of answers within budget, per second.
        missed: share of requests that were not answered within their budget.
        late: share that was answered after it.
        refused: share that was refused.
        failed: share that failed in any other way.
        accuracy: mean score of the answers, in time or not.
        p95_ms: 95th percentile of the latency of answers.
        num_requests: number of requests.
    """

    policy: str
    rate: float
    goodput: float
    missed: float
    late: float
    refused: float
    failed: float
    accuracy: float
    p95_ms: float
    num_requests: int

    @classmethod
    def of(cls, policy: str, rate: float, replies: Sequence[Reply], seconds: float) -> "Row":
        """Summarises the replies to requests that arrived within some seconds."""
        answered = [r for r in replies if r.outcome == "answered"]
        count = max(1, len(replies))
        return cls(
            policy=policy,
            rate=rate,
            goodput=sum(r.score for r in replies if r.is_in_time) / seconds,
            missed=sum(not r.is_in_time for r in replies) / count,
            late=sum(not r.is_in_time for r in answered) / count,
            refused=sum(r.outcome == "refused" for r in replies) / count,
            failed=sum(r.outcome == "failed" for r in replies) / count,
            accuracy=float(np.mean([r.score for r in answered])) if answered else 0.0,
            p95_ms=float(np.quantile([r.latency_ms for r in answered], 0.95)) if answered else 0.0,
            num_requests=len(replies),
        )


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
    arrivals, due_s = [], rng.exponential(1 / rate)
    while due_s < config.turn_s:
        arrivals.append(
            Arrival(
                due_s=due_s,
                number=int(rng.integers(config.num_samples)),
                budget_ms=float(rng.choice(config.budgets_ms)),
            )
        )
        due_s += rng.exponential(1 / rate)
    return arrivals


async def play(
    config: GoodputConfig, questions: Questions, policy: str, arrivals: Sequence[Arrival]
) -> list[Reply]:
    """Sends the requests of one turn when they are due, and waits for all replies."""
    timeout = aiohttp.ClientTimeout(total=GIVE_UP_S)
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
                score=questions.score(arrival, answer) if outcome == "answered" else 0.0,
                latency_ms=1e3 * (time.perf_counter() - due_s),
                budget_ms=arrival.budget_ms,
            )

        return list(await asyncio.gather(*(one(arrival) for arrival in arrivals)))


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[str, str]:
    headers = {"Content-Type": "application/json"}
    try:
        async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as reply:
            if reply.status == 429:
                return "refused", ""
            if reply.status != 200:
                return "failed", ""
            return "answered", (await reply.json())["choices"][0]["message"]["content"]
    except (aiohttp.ClientError, TimeoutError):
        return "failed", ""


@asynccontextmanager
async def stand_in_server() -> AsyncIterator[str]:
    """A server that answers every question with the same word; yields its address."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "yes"}}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
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
    rows = []
    for rate in config.rates:
        replies: dict[str, list[Reply]] = {policy: [] for policy in config.policies}
        for turn in range(config.turns):
            for policy in config.policies:
                arrivals = schedule(config, rate, turn)
                replies[policy] += await play(config, questions, policy, arrivals)
                await asyncio.sleep(config.pause_s)
        seconds = config.turns * config.turn_s
        new = [Row.of(policy, rate, found, seconds) for policy, found in replies.items()]
        for row in new:
            console.print(
                f"{row.rate:g}/s {row.policy:<20} goodput {row.goodput:.2f}/s  missed "
                f"{row.missed:.1%}  late {row.late:.1%}  refused {row.refused:.1%}  failed "
                f"{row.failed:.1%}  accuracy {row.accuracy:.2f}  p95 {row.p95_ms:.0f} ms"
            )
        rows += new
    return rows


def figure_of(rows: Sequence[Row], config: GoodputConfig) -> Figure:
    """Goodput and missed budgets against the rate."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for policy in config.policies:
        ours = [row for row in rows if row.policy == policy]
        width = 2.5 if policy == "controller" else 1.3
        rates = [row.rate for row in ours]
        left.plot(rates, [row.goodput for row in ours], "o-", label=policy, linewidth=width)
        right.plot(rates, [100 * row.missed for row in ours], "o-", label=policy, linewidth=width)
    budgets = ", ".join(f"{ms:g}" for ms in config.budgets_ms)
    left.set(ylabel="correct answers within budget, 1/s", title=f"budgets {budgets} ms")
    right.set(ylabel="requests not answered within budget, %", ylim=(0, 100))
    right.axhline(50, color="grey", linestyle=":")
    for axes in (left, right):
        axes.set_xlabel("requests, 1/s")
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    left.legend()
    return figure


def verdict(rows: Sequence[Row]) -> str:
    """The controller against fixed configurations, where the full one's misses pass 50 %."""
    passing = [row.rate for row in rows if row.policy == "full" and row.missed > 0.5]
    if not passing:
        return "the full configuration never misses more than half of the budgets"
    there = {row.policy: row for row in rows if row.rate == min(passing)}
    table = {name: row.goodput for name, row in there.items()}
    return f"at {min(passing):g}/s the full configuration misses more than half: goodput {table}"


def main() -> int:
    """Runs the load test."""
    config = read_options(QUICK, __doc__)
    console = Console(soft_wrap=True, highlight=False)
    rows = asyncio.run(rows_of(config, console))
    figure_of(rows, config).savefig(config.output, dpi=120)
    content = {"config": asdict(config) | {"output": ""}, "rows": [asdict(row) for row in rows]}
    config.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    table = Table("policy", *(f"{rate:g}/s" for rate in config.rates))
    for policy in config.policies:
        table.add_row(policy, *(f"{r.goodput:.2f}" for r in rows if r.policy == policy))
    console.print(table)
    console.print(verdict(rows))
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

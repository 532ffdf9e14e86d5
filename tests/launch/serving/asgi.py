"""An ASGI application called in process, and replicas without a model."""

import asyncio
import json
from dataclasses import dataclass, field

from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS
from launch.serving.admission import Admission, QueueConfig
from launch.serving.app import AppConfig, build_app
from launch.serving.episodes import EpisodeResult, ReplicaFacts
from launch.serving.estimates import REQUEST_SIZES, CheapestTimes, ImageSize
from launch.serving.gateway import Gateway
from launch.serving.images import open_within
from launch.serving.limits import Limits


def cheapest_times(image_ms, text_ms):
    """The same time for all images and prompts."""
    return CheapestTimes(
        by_size_ms={
            size: text_ms if size.image == ImageSize.NONE else image_ms for size in REQUEST_SIZES
        }
    )


FACTS = ReplicaFacts(
    policies=("controller", "full", "cheapest"),
    cheapest=cheapest_times(image_ms=20.0, text_ms=5.0),
    budget_range_ms=(40.0, 120.0),
)
JSON = {"content-type": "application/json", "host": "127.0.0.1:8000"}


def result(text="seven", **changes):
    fields = {
        "text": text,
        "knobs": FULL_KNOBS,
        "decided_by": "a test",
        "stages_ms": {"vision_global": 1.0, "blocks": 4.0, "decode": 2.0},
        "latency_ms": 7.0,
        "wall_ms": 7.0,
        "host_ms": 1.0,
        "clock": "test",
        "finished": True,
        "num_output_tokens": 2,
        "num_prompt_tokens": 9,
    }
    return EpisodeResult(**{**fields, **changes})


@dataclass
class FakeReplicas:
    """Answers at once; `script` may replace the reports of an episode, or raise."""

    number: int = 1
    known: ReplicaFacts = FACTS
    requests: list = field(default_factory=list)
    script: object = None

    async def facts(self):
        return self.known

    async def count(self):
        return self.number

    async def stream(self, request):
        if request.image is not None:
            open_within(request.image, Limits().megapixels)
        self.requests.append(request)
        if self.script is not None:
            async for report in self.script(request):
                yield report
            return
        yield ""
        yield "sev"
        await asyncio.sleep(0)
        yield "en"
        knobs = CHEAPEST_KNOBS if request.policy == "cheapest" else FULL_KNOBS
        yield result(knobs=knobs)


class Gate(FakeReplicas):
    """Replicas whose episodes wait until they are let go."""

    def __init__(self, number=1, known=FACTS):
        super().__init__(number, known)
        self.open, self.script = asyncio.Event(), self._wait

    async def _wait(self, request):
        await self.open.wait()
        yield result(price=request.price, latency_ms=80.0, wall_ms=80.0)


@dataclass
class Recorder:
    """A watcher that remembers."""

    served: list = field(default_factory=list)
    codes: list = field(default_factory=list)
    states: list = field(default_factory=list)

    def answered(self, model, served):
        self.served.append((model, served))

    def refused(self, model, code):
        self.codes.append((model, code))

    def queue(self, **state):
        self.states.append(state)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict
    chunks: list

    @property
    def body(self):
        return b"".join(self.chunks)

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]

    def events(self):
        parts = self.body.decode().split("\n\n")
        return [part.removeprefix("data: ") for part in parts if part]


class Server:
    """The application with fake replicas, as a client sees it."""

    def __init__(self, *, queue=None, limits=None, token="", replicas=None, now=None):
        self.replicas, self.watcher = replicas or FakeReplicas(), Recorder()
        clock = {"now": now} if now else {}
        admission = Admission(config=queue or QueueConfig(), **clock)
        self.gateway = Gateway(self.replicas, admission, limits or Limits(), self.watcher)

        async def metrics():
            return "ray_latency_budget_serve_requests 1\n"

        config = AppConfig(
            page="<!doctype html>", default_budget_ms=100.0, token=token, metrics=metrics
        )
        self.app = build_app(self.gateway, config)

    async def ready(self):
        await self.gateway.refresh()
        return self

    async def call(self, method, path, body=b"", headers=None):
        """One request, complete at once."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        return await self.send(method, path, messages, headers)

    async def chat(self, headers=None, **body):
        return await self.call(
            "POST", "/v1/chat/completions", json.dumps(body).encode(), headers or JSON
        )

    async def send(self, method, path, messages, headers=None, receive=None):
        """One request as ASGI messages; whoever wants more than these waits for ever."""
        pairs = [(k.encode(), v.encode()) for k, v in (headers or JSON).items()]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": pairs,
            "scheme": "http",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 1),
        }
        pending, sent = list(messages), []
        self.sent = sent

        async def next_message():
            if pending:
                return pending.pop(0)
            await asyncio.Event().wait()

        async def keep(message):
            sent.append(message)

        await self.app(scope, receive or next_message, keep)
        if not sent:
            return None
        start, *bodies = sent
        headers = {k.decode(): v.decode() for k, v in start["headers"]}
        chunks = [b["body"] for b in bodies if b.get("body")]
        return Reply(start["status"], headers, chunks)


def question(text="what is it", *images):
    parts = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in images]
    return [{"role": "user", "content": parts}]

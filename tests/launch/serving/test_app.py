"""The HTTP interface in process, in front of replicas without a model."""

import asyncio
import json

import pytest

from launch.serving.admission import QueueConfig
from launch.serving.episodes import ReplicaLostError
from launch.serving.errors import ApiError
from launch.serving.limits import Limits
from tests.launch.serving.asgi import JSON, FakeReplicas, Gate, Server, question, result
from tests.launch.serving.malformed import encoded_image, malformed, url_of

PICTURE = url_of(encoded_image())


def run(check, **settings):
    """Runs a check on a server that is ready."""

    async def checked():
        return await asyncio.wait_for(check(await Server(**settings).ready()), 60)

    return asyncio.run(checked())


def test_a_question_about_an_image():
    async def check(server):
        reply = await server.chat(
            model="controller", messages=question("what is it", PICTURE), latency_budget_ms=9000
        )
        assert reply.status == 200
        body = reply.json()
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["content"] == "seven"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"] == {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
        told = body["latency_budget"]
        assert told["choices"] == {"tier": "high", "position": 1, "top_k": 8, "num_blocks": 16}
        assert (told["budget_ms"], told["within_budget"]) == (9000, True)
        assert told["in_words"].startswith("Up to 12 crops of the image, 8 of 8 experts")
        (request,) = server.replicas.requests
        assert (request.policy, request.text) == ("controller", "what is it")
        assert request.image == encoded_image_of(PICTURE)
        assert 5000 < request.budget_ms <= 9000
        assert [model for model, _ in server.watcher.served] == ["controller"]

    run(check)


def encoded_image_of(url):
    import base64

    return base64.b64decode(url.partition(",")[2])


def test_a_stream_sends_each_piece_as_it_comes():
    async def check(server):
        reply = await server.chat(model="full", messages=question(), stream=True)
        assert reply.headers["content-type"].startswith("text/event-stream")
        *events, done = reply.events()
        assert done == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        deltas = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
        assert deltas == ["", "sev", "en", None]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["latency_budget"]["within_budget"]
        assert len(reply.chunks) >= 4, "pieces are not collected"

    run(check)


def test_a_piece_is_sent_before_the_next_one_is_there():
    async def check(server):
        async def slow(_request):
            yield "sev"
            while not any(b"sev" in message.get("body", b"") for message in server.sent):
                await asyncio.sleep(0.01)
            yield result()

        server.replicas.script = slow
        reply = await server.chat(model="full", messages=question(), stream=True)
        assert reply.events()[-1] == "[DONE]"

    run(check)


def test_what_is_not_stated_has_defaults():
    async def check(server):
        reply = await server.chat(
            model="low-p1-k4-b12", messages=[{"role": "user", "content": "a"}]
        )
        assert reply.status == 200
        assert reply.json()["latency_budget"]["budget_ms"] == 100
        (request,) = server.replicas.requests
        assert (request.policy, request.image, request.max_new_tokens) == (
            *("low-p1-k4-b12", None),
            None,
        )
        await server.chat(model="full", messages=question(), max_tokens=3)
        assert server.replicas.requests[-1].max_new_tokens == 3

    run(check)


def test_two_hundred_malformed_requests_are_refused():
    async def check(server):
        bodies = malformed()
        assert len(bodies) >= 200
        for body in bodies:
            reply = await server.call("POST", "/v1/chat/completions", body)
            assert 400 <= reply.status < 500, (reply.status, body[:200])
            error = reply.error
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
            assert len(error["message"]) < 600
        assert server.replicas.requests == []
        assert {model for model, _ in server.watcher.codes} <= {"", "full"}
        assert (await server.chat(model="full", messages=question())).status == 200

    run(check)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/chat/completions", 405), ("GET", "/nothing", 404), ("POST", "/v1/models", 405)],
)
def test_unknown_paths_and_methods(method, path, status):
    async def check(server):
        reply = await server.call(method, path)
        assert reply.status == status
        assert reply.error["type"] == "invalid_request_error"

    run(check)


def test_models_are_policies():
    async def check(server):
        listed = (await server.call("GET", "/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["controller", "full", "cheapest"]
        one = await server.call("GET", "/v1/models/high-p5-k8-b16")
        assert one.json()["id"] == "high-p5-k8-b16"
        assert (await server.call("GET", "/v1/models/other")).status == 404

    run(check)


def test_a_form_of_another_site_is_refused():
    async def check(server):
        body = json.dumps({"model": "full", "messages": question()}).encode()
        for headers in (
            {"content-type": "text/plain", "host": "127.0.0.1"},
            {"content-type": "application/json", "host": "rebound.example.org"},
        ):
            reply = await server.call("POST", "/v1/chat/completions", body, headers)
            assert reply.status in (415, 421)
            assert reply.error["message"]
        assert server.replicas.requests == []

    run(check)


def test_a_token_is_needed_where_one_is_set():
    async def check(server):
        anywhere = {"content-type": "application/json", "host": "example.org"}
        body = json.dumps({"model": "full", "messages": question()}).encode()
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer "}):
            for method, path in (
                *(("POST", "/v1/chat/completions"), ("GET", "/v1/models")),
                ("GET", "/metrics"),
            ):
                reply = await server.call(method, path, body, anywhere | header)
                assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        right = anywhere | {"authorization": "Bearer secret"}
        assert (await server.call("POST", "/v1/chat/completions", body, right)).status == 200
        assert (await server.call("GET", "/", headers=anywhere)).status == 200
        assert (await server.call("GET", "/healthz", headers=anywhere)).status == 200

    run(check, token="secret")


def test_health_and_questions_before_a_replica_is_ready():
    async def check():
        server = Server()
        assert (await server.call("GET", "/healthz")).status == 503
        reply = await server.chat(model="full", messages=question())
        assert (reply.status, reply.error["code"]) == (503, "starting")
        await server.ready()
        assert (await server.call("GET", "/healthz")).json() == {"status": "ok", "replicas": 1}

    asyncio.run(check())


def test_the_token_is_looked_at_before_the_body_is_read():
    async def check(server):
        async def never():
            pytest.fail("the body was read")

        reply = await server.send("POST", "/v1/chat/completions", [], receive=never)
        assert reply.status == 401
        assert server.watcher.codes == [("", "invalid_api_key")]

    run(check, token="secret")


def test_all_bodies_together_have_a_limit():
    limits = Limits(body_mib=1, all_bodies_mib=1.5)

    async def check(server):
        part = {"type": "http.request", "body": b"x" * 2**20, "more_body": True}
        path = "/v1/chat/completions"
        slow = asyncio.create_task(server.send("POST", path, [part]))
        await asyncio.sleep(0)
        end = {**part, "more_body": False}
        reply = await server.send("POST", path, [end])
        assert (reply.status, reply.error["code"]) == (503, "out_of_room")
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert (await server.send("POST", path, [end])).status == 400, "there is room again"

    run(check, limits=limits)


def test_large_bodies_are_refused_whatever_their_header_says():
    async def check(server):
        part = {"type": "http.request", "body": b"x" * 2**18, "more_body": True}
        reply = await server.send("POST", "/v1/chat/completions", [part] * 9)
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")
        for length in ("99999999999", "-1", "many"):
            stated = {**JSON, "content-length": length}
            reply = await server.send("POST", "/v1/chat/completions", [], stated)
            assert reply.status == 413

    run(check, limits=Limits(body_mib=2))


def test_a_client_that_sends_slowly_is_refused():
    async def check(server):
        part = {"type": "http.request", "body": b"{", "more_body": True}
        reply = await server.send("POST", "/v1/chat/completions", [part])
        assert (reply.status, reply.error["code"]) == (408, "request_timeout")

    run(check, limits=Limits(body_timeout_s=0.05))


def test_a_client_that_leaves_early_gets_nothing():
    async def check(server):
        leaving = [{"type": "http.disconnect"}]
        assert await server.send("POST", "/v1/chat/completions", leaving) is None

    run(check)


def test_a_full_queue_refuses_and_drains():
    async def check(server):
        asked = [
            asyncio.create_task(server.chat(model="full", messages=question())) for _ in range(6)
        ]
        await asyncio.sleep(0.05)
        assert server.gateway.admission.num_waiting == 2
        server.replicas.open.set()
        replies = await asyncio.gather(*asked)
        assert sorted(reply.status for reply in replies) == [200] * 3 + [429] * 3
        refused = [reply for reply in replies if reply.status == 429]
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert {reply.error["type"] for reply in refused} == {"rate_limit_error"}
        assert server.gateway.admission.num_running == 0

    run(check, queue=QueueConfig(max_waiting=2), replicas=Gate())


def test_a_waiting_client_that_leaves_gives_its_place_up():
    async def check(server):
        chat = {"model": "full", "messages": question()}
        first, second = (asyncio.create_task(server.chat(**chat)) for _ in range(2))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0.05)
        assert server.gateway.admission.num_waiting == 0
        assert server.watcher.codes == [("full", "abandoned")]
        first.cancel()
        await asyncio.sleep(0.05)
        assert server.gateway.admission.num_running == 1, "its episode still occupies the device"
        server.replicas.open.set()
        await asyncio.sleep(0.05)
        assert server.gateway.admission.num_running == 0
        assert server.watcher.codes == [("full", "abandoned")] * 2
        assert server.watcher.served == [], "nobody has seen that answer"

    run(check, replicas=Gate())


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        (Limits(wait_timeout_s=0.05), 503, "wait_timeout"),
        (Limits(episode_timeout_s=0.05), 504, "episode_timeout"),
    ],
)
def test_nothing_takes_longer_than_its_limit(limits, status, code):
    async def check(server):
        if code == "wait_timeout":
            server.gateway.admission.resize(0)
        reply = await server.chat(model="full", messages=question())
        assert (reply.status, reply.error["code"]) == (status, code)
        assert server.gateway.admission.num_waiting + server.gateway.admission.num_running == 0

    run(check, limits=limits, replicas=Gate())


def losing(times, before=()):
    """A script that loses its replica some times."""
    left = [times]

    async def script(_request):
        for report in before:
            yield report
        if left[0]:
            left[0] -= 1
            raise ReplicaLostError
        yield result()

    return script


def test_a_lost_replica_costs_a_second_try():
    async def check(server):
        server.replicas.script = losing(1)
        asked = asyncio.create_task(server.chat(model="full", messages=question()))
        await asyncio.sleep(0.05)
        assert server.gateway.admission.num_replicas == 0
        await server.gateway.refresh()
        assert (await asked).status == 200

    run(check)


def test_a_stream_without_text_yet_gets_a_second_try_too():
    async def check(server):
        server.replicas.script = losing(1)
        reply = await server.chat(model="full", messages=question(), stream=True)
        assert reply.events()[-1] == "[DONE]"
        assert len(server.watcher.served) == 1

    run(check, replicas=FakeReplicas(number=5))


def test_a_lost_replica_after_some_text_is_no_matter_without_a_stream():
    async def check(server):
        server.replicas.script = losing(1, before=["sev"])
        reply = await server.chat(model="full", messages=question())
        assert reply.json()["choices"][0]["message"]["content"] == "seven"

    run(check, replicas=FakeReplicas(number=5))


def test_a_request_that_keeps_losing_replicas_is_given_up():
    async def check(server):
        server.replicas.script = losing(9)
        reply = await server.chat(model="full", messages=question())
        assert (reply.status, reply.error["code"]) == (503, "replica_lost")
        assert reply.headers["retry-after"] == "1"

    run(check, replicas=FakeReplicas(number=5))


def test_a_stream_that_has_begun_ends_with_an_error():
    async def check(server):
        server.replicas.script = losing(9, before=["sev"])
        reply = await server.chat(model="full", messages=question(), stream=True)
        *_, error, done = reply.events()
        assert reply.status == 200
        assert json.loads(error)["error"]["code"] == "replica_lost"
        assert done == "[DONE]"

    run(check)


def test_an_unforeseen_failure_says_nothing_about_the_server():
    async def check(server):
        async def broken(_request):
            raise OSError("/secret/path")
            yield

        server.replicas.script = broken
        reply = await server.chat(model="full", messages=question())
        assert (reply.status, reply.error["code"]) == (500, "internal_error")
        assert b"secret" not in reply.body
        server.replicas.script = None
        assert (await server.chat(model="full", messages=question())).status == 200

    run(check)


def test_what_the_model_refuses_is_passed_on():
    async def check(server):
        async def picky(_request):
            raise ApiError(400, "the prompt is too long", code="invalid_value", param="messages")
            yield

        server.replicas.script = picky
        for is_streamed in (False, True):
            reply = await server.chat(model="full", messages=question(), stream=is_streamed)
            assert (reply.status, reply.error["message"]) == (400, "the prompt is too long")

    run(check)

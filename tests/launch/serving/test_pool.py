"""Gateway and replicas over real connections, with episodes that need no model."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from envs.spec import all_knobs
from launch.serving.episodes import EpisodeRequest, EpisodeResult, ReplicaLostError
from launch.serving.errors import ApiError, invalid
from launch.serving.listening import listening
from launch.serving.pool import FORGET_S, ReplicaPool
from launch.serving.replica_app import replica_app
from launch.serving.wire import decode_report, decode_request, encode_report, encode_request
from tests.launch.serving.asgi import FACTS, result

KEY = "of this server"
IMAGE = bytes(range(256)) * 3


def asked(**changes):
    fields = {"policy": "full", "text": "what\nis it", "image": IMAGE, "budget_ms": 50.0}
    return EpisodeRequest(**{**fields, **changes})


def test_everything_arrives_as_it_was_sent():
    for request in (asked(), asked(image=None, price=0.3, max_new_tokens=4, text="één ☃ \x00")):
        assert decode_request(encode_request(request)) == request
    for knobs in all_knobs():
        assert decode_report(encode_report(result(knobs=knobs))) == result(knobs=knobs)
    assert decode_report(encode_report("two\nlines")) == "two\nlines"
    error = decode_report(encode_report(invalid("no", "messages", code="bad")))
    assert (error.status, error.message, error.code, error.param) == (400, "no", "bad", "messages")
    for body in (b"", b"{}", b"\x00\xff", b'{"policy": 3}\n'):
        with pytest.raises(ValueError, match="validation error"):
            decode_request(body)


async def seven(request):
    yield ""
    yield "seven"
    yield result(text=request.text, price=request.price or 0.0)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@asynccontextmanager
async def pool_of(*streams, key=KEY, clock=None):
    """A pool, and the addresses of its replicas."""
    pool = ReplicaPool(key, clock or Clock())
    async with AsyncExitStack() as stack:
        addresses = []
        for stream in streams:
            listener = listening(replica_app(stream, KEY), "127.0.0.1", drain_s=1)
            addresses.append(f"127.0.0.1:{await stack.enter_async_context(listener)}")
            assert pool.register(addresses[-1], FACTS, is_idle=True)
        stack.push_async_callback(pool.close)
        yield pool, addresses


async def reports(pool, **changes):
    return [report async for report in pool.stream(asked(**changes))]


def run(check, *streams, **options):
    async def checked():
        async with asyncio.timeout(60), pool_of(*streams, **options) as (pool, addresses):
            await check(pool, addresses)

    asyncio.run(checked())


def test_an_episode_over_a_connection():
    async def check(pool, _addresses):
        assert await pool.facts() == FACTS
        for _ in range(3):
            *pieces, last = await reports(pool, price=0.5)
            assert pieces == ["", "seven"]
            assert last == result(text="what\nis it", price=0.5)

    run(check, seven)


def test_a_piece_arrives_before_the_next_one_is_there():
    go_on = asyncio.Event()

    async def slow(_request):
        yield "sev"
        await go_on.wait()
        yield result()

    async def check(pool, _addresses):
        last = None
        async for report in pool.stream(asked()):
            go_on.set()
            last = report
        assert isinstance(last, EpisodeResult)

    run(check, slow)


def test_refusals_and_failures_are_told_apart():
    async def refuses(_request):
        raise invalid("the question is empty", "messages")
        yield

    async def fails(_request):
        yield ""
        raise RuntimeError("a fault")

    async def check_refusal(pool, _addresses):
        with pytest.raises(ApiError, match="is empty") as error:
            await reports(pool)
        assert (error.value.status, await pool.count()) == (400, 1)

    async def check_failure(pool, _addresses):
        with pytest.raises(ApiError, match="failed to answer") as error:
            await reports(pool)
        assert (error.value.status, await pool.count()) == (500, 1)

    run(check_refusal, refuses)
    run(check_failure, fails)


def test_only_the_gateway_is_answered():
    async def check(pool, addresses):
        with pytest.raises(ReplicaLostError, match="403"):
            await reports(pool)
        assert await pool.count() == 0

    run(check, seven, key="of another server")


def test_each_replica_has_one_episode_at_a_time():
    running, most = [0], [0]

    async def counted(_request):
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.05)
        running[0] -= 1
        yield result()

    async def check(pool, _addresses):
        await asyncio.gather(reports(pool), reports(pool))
        assert most[0] == 2
        with pytest.raises(ReplicaLostError, match="free"):
            await asyncio.gather(*(reports(pool) for _ in range(3)))

    run(check, counted, counted)


def test_a_lost_replica_is_not_asked_again_until_it_registers():
    async def ends(_request):
        yield "sev"

    async def check(pool, addresses):
        with pytest.raises(ReplicaLostError, match="closed"):
            await reports(pool)
        assert await pool.count() == 0
        assert pool.register(addresses[0], FACTS, is_idle=True)
        assert not pool.register(addresses[0], FACTS, is_idle=True), "it is known"
        assert await pool.count() == 1
        assert pool.register("127.0.0.1:9", FACTS, is_idle=True)  # nobody listens there

    run(check, ends)


def test_a_replica_that_is_gone_is_lost():
    async def check(pool, _addresses):
        pool.register("127.0.0.1:9", FACTS, is_idle=True)
        with pytest.raises(ReplicaLostError):
            await reports(pool)
        assert await pool.count() == 0

    run(check)


def test_an_episode_that_is_given_up_keeps_its_replica():
    async def stuck(_request):
        yield ""
        await asyncio.sleep(3600)

    async def check(pool, addresses):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await reports(pool)
        assert await pool.count() == 0
        assert not pool.register(addresses[0], FACTS, is_idle=False)
        assert await pool.count() == 0, "it is still at the episode"
        assert pool.register(addresses[0], FACTS, is_idle=True)
        assert await pool.count() == 1

    run(check, stuck)


def test_a_replica_that_says_nothing_is_forgotten():
    clock = Clock()

    async def check(pool, addresses):
        clock.now = FORGET_S - 1
        pool.register(addresses[0], FACTS, is_idle=False)
        clock.now = FORGET_S + 1
        assert await pool.count() == 1
        clock.now = 3 * FORGET_S
        assert await pool.count() == 0

    run(check, seven, seven, clock=clock)

"""What becomes of requests under load, counted apart, and compared in hindsight."""

import asyncio
import time

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from benchmarks.goodput import GoodputConfig, _post, schedule, thirds
from benchmarks.goodput_report import Outcome, Reply, Row, best_of, ratio, table_of, verdict


def reply(outcome=Outcome.ANSWERED, score=1.0, latency_ms=50.0, budget_ms=100.0):
    return Reply(outcome=outcome, score=score, latency_ms=latency_ms, budget_ms=budget_ms)


def test_six_ends_are_counted_apart():
    ends = [
        *[reply()] * 3,
        reply(score=0.0),
        reply(score=0.5),
        reply(latency_ms=100.5),
        *[reply(Outcome.REFUSED, score=0.0)] * 2,
        reply(Outcome.FAILED, score=0.0),
        reply(Outcome.ABANDONED, score=0.0, latency_ms=20_000.0),
    ]
    row = Row.of("controller", 8.0, [ends, [reply()] * 10], 2.0)
    assert row.right == pytest.approx(13.5 / 20)
    assert row.wrong == pytest.approx(1.5 / 20)
    assert row.late == pytest.approx(1 / 20)
    assert (row.refused, row.failed, row.abandoned) == (0.1, 0.05, 0.05)
    assert row.right + row.wrong + row.missed == pytest.approx(1)
    assert row.turns == (1.75, 5.0)
    assert row.goodput.mean == pytest.approx(3.375)
    assert row.goodput.half_width == pytest.approx(1.96 * np.std([1.75, 5], ddof=1) / 2**0.5)
    assert row.p95_ms < 101, "of answers"
    assert "abandoned 5.0%" in row.line()


def test_nothing_was_answered():
    row = Row.of("controller", 8.0, [[reply(Outcome.FAILED)], []], 2.0)
    assert (row.failed, row.right, row.goodput.mean) == (1.0, 0.0, 0.0)
    assert np.isnan(row.p50_ms)


def row_of(policy, *turns, rate=8.0, right=1.0):
    goods = [[reply(score=right)] * count for count in turns]
    return Row.of(policy, rate, goods, 1.0)


def test_the_best_fixed_configuration_is_that_of_each_rate():
    rows = [
        *(row_of("controller", 9, 11), row_of("full", 8, 8), row_of("cheapest", 4, 4)),
        row_of("controller", 20, 22, rate=16.0),
        *(row_of("full", 3, 3, rate=16.0), row_of("cheapest", 10, 11, rate=16.0)),
    ]
    fixed = ("full", "cheapest")
    first, second = verdict(rows, fixed)
    assert first.startswith("8/s: the controller's goodput is 1.250 ±")
    assert "of the best fixed configuration, full;" in first
    assert second.startswith("16/s: the controller's goodput is 2.000 ± 0.000")
    assert "of the best fixed configuration, cheapest; 7.000 ±" in second
    assert best_of(rows, ("other",)) is None
    assert table_of(rows, fixed).row_count == 4


def test_a_ratio_takes_what_turns_have_in_common_out():
    shared = ratio(row_of("a", 10, 20, 30), row_of("b", 5, 10, 15))
    assert (shared.mean, shared.half_width) == (pytest.approx(2), pytest.approx(0))
    assert ratio(row_of("a", 10), row_of("b", 0)) is None
    assert verdict([row_of("controller", 10), row_of("full", 0)], ("full",)) == []


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {"choices": [{"message": {"content": "yes"}}]}, Outcome.ANSWERED),
        (429, {"error": {"code": "queue_full"}}, Outcome.REFUSED),
        (400, {"error": {"code": "budget_too_short"}}, Outcome.REFUSED),
        (400, {"error": {"code": "invalid_value"}}, Outcome.FAILED),
        (503, {"error": {"code": "starting"}}, Outcome.FAILED),
        (200, {"error": {}}, Outcome.FAILED),
        (None, {}, Outcome.ABANDONED),
    ],
)
def test_what_a_client_sees(status, body, expected):
    async def answer(_request):
        if status is None:
            await asyncio.sleep(5)
        return web.json_response(body, status=status)

    async def seen():
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        timeout = aiohttp.ClientTimeout(total=0.2 if status is None else 10)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                return await _post(session, f"http://127.0.0.1:{runner.addresses[0][1]}", b"{}")
        finally:
            await runner.cleanup()

    started_s = time.monotonic()
    outcome, _ = asyncio.run(seen())
    assert outcome == expected
    assert time.monotonic() - started_s < 10


def test_the_rate_jumps_in_the_middle_third():
    config = GoodputConfig(turn_s=300.0, jump_to=20.0)
    arrivals = schedule(config, 4.0, 0)
    counts = np.histogram([arrival.due_s for arrival in arrivals], bins=3, range=(0, 300))[0]
    np.testing.assert_allclose(counts, (400, 2000, 400), rtol=0.15)
    replies = [
        Reply(outcome=Outcome.ANSWERED, score=1.0, latency_ms=9, budget_ms=10, due_s=a.due_s)
        for a in arrivals
    ]
    lines = thirds("controller", [replies], config, 4.0)
    assert [line.split()[2] for line in lines] == ["4/s", "20/s", "4/s"]
    assert f"goodput {counts[1] / 100:.3f}" in lines[1]

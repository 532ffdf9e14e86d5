"""The rule by which the price of time follows the load."""

import asyncio
import math
from dataclasses import replace
from itertools import pairwise

import pytest

from envs.price_curve import PriceCurve
from launch.serving.pricing import (
    RATE_WINDOW_S,
    TARGET_BUSY_SHARE,
    ArrivalRate,
    Demand,
    LoadPrice,
    ServiceTime,
    price_of_load,
)
from tests.launch.serving.asgi import FACTS, Gate, Server, question

CURVE = PriceCurve(prices=(0.0, 0.1, 1.0), time_ms=(80.0, 60.0, 40.0))


def demand(per_s, num_waiting=0, num_replicas=1):
    return Demand(arrivals_per_s=per_s, num_waiting=num_waiting, num_replicas=num_replicas)


def test_what_is_bearable_by_hand():
    assert demand(8.0).bearable_ms == pytest.approx(1e3 * TARGET_BUSY_SHARE / 8)
    assert demand(8.0, 4, 3).bearable_ms == pytest.approx(3e3 * TARGET_BUSY_SHARE / 12)
    assert demand(0.0).bearable_ms == math.inf


def test_the_price_is_the_lowest_at_which_the_replicas_keep_up():
    service = ServiceTime(scale=1.5, overhead_ms=10.0)
    for per_s in (8.5, 9.0, 10.0):
        price = price_of_load(CURVE, demand(per_s), service, 0.0)
        occupied_ms = 1.5 * CURVE.time_at(price) + 10
        assert per_s * occupied_ms / 1e3 == pytest.approx(TARGET_BUSY_SHARE)
    assert price_of_load(CURVE, demand(1.0), service, 0.0) == 0.0
    assert price_of_load(CURVE, demand(1.0), service, 0.02) == 0.02
    assert price_of_load(CURVE, demand(99.0), service, 0.02) == 1.0
    assert price_of_load(CURVE, demand(99.0), service, 1.5) == 1.5
    assert price_of_load(CURVE, demand(9.0, num_replicas=0), service, 0.02) == 1.0


def test_the_price_is_continuous_and_rises_with_the_load():
    prices = [price_of_load(CURVE, demand(n / 100), ServiceTime(), 0.02) for n in range(1, 4000)]
    steps = [after - before for before, after in pairwise(prices)]
    assert min(steps) >= 0
    assert max(steps) < 0.01


def test_the_rate_is_that_of_the_last_seconds():
    rate = ArrivalRate()
    for number in range(1000):
        rate.arrive(number / 20)
    assert rate.per_s(50.0) == pytest.approx(20, rel=0.02)
    assert rate.per_s(50.0 + RATE_WINDOW_S) == pytest.approx(20 / math.e, rel=0.02)


def test_without_a_curve_every_request_has_its_own_price():
    rule = LoadPrice(own_price=0.02)
    for _ in range(1000):
        rule.arrive(5.0)
    rule.observe("controller", 0.02, wall_ms=500.0, replica_ms=600.0)
    told = {"num_waiting": 9, "num_replicas": 1}
    assert rule.price("controller", None, 5.0, **told) == 0.02
    assert rule.price("controller", 0.3, 5.0, **told) == 0.3


def test_policies_have_service_times_of_their_own():
    rule = LoadPrice(own_price=0.0, curve=CURVE)
    for _ in range(24):
        rule.arrive(5.0)  # 8/s, that is 100 ms each
    told = {"num_waiting": 0, "num_replicas": 1}
    assert rule.price("table", None, 5.0, **told) == 0.0
    rule.observe("table", 0.1, wall_ms=120.0, replica_ms=125.0)
    assert rule.price("table", None, 5.0, **told) > 0.1
    assert rule.price("controller", None, 5.0, **told) == 0.0


def test_the_price_of_a_request_rises_with_those_who_wait_after_it():
    async def check():
        replicas = Gate(known=replace(FACTS, price=0.02, price_curve=CURVE))
        server = await Server(replicas=replicas).ready()
        server.replicas.open.set()
        chat = {"model": "controller", "messages": question(), "latency_budget_ms": 9000}
        alone = await server.chat(**chat)
        assert alone.json()["latency_budget"]["price"] == 0.02
        assert (await server.chat(**chat, price=0)).status == 200
        server.replicas.open.clear()
        asked = [asyncio.create_task(server.chat(**chat)) for _ in range(25)]
        await asyncio.sleep(0.05)
        server.replicas.open.set()
        await asyncio.gather(*asked)
        prices = [request.price for request in server.replicas.requests]
        assert prices[:2] == [0.02, 0.0]
        assert max(prices) == prices[3] == 1.0
        assert prices[4:] == sorted(prices[4:], reverse=True)

    asyncio.run(asyncio.wait_for(check(), 60))

"""The queue, on a clock that the test moves."""

import pytest

from envs.price_curve import PriceCurve
from envs.terms import Terms
from launch.serving.admission import LEAST_MS, Admission, Answered, QueueConfig, Ticket
from launch.serving.errors import ApiError
from launch.serving.estimates import STALE_S, Estimates, ImageSize, RequestSize
from launch.serving.pricing import LoadPrice
from tests.launch.serving.asgi import cheapest_times


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def pass_ms(self, ms):
        self.now_s += ms / 1e3


class Desk:
    """A queue with its clock, and the order in which turns came."""

    def __init__(self, num_replicas=1, **config):
        self.clock, self.turns = Clock(), []
        started = cheapest_times(image_ms=20.0, text_ms=10.0)
        self.queue = Admission(
            config=QueueConfig(**config), estimates=Estimates(started=started), now=self.clock
        )
        self.queue.resize(num_replicas)

    def arrive(self, name, budget_ms=100.0, *, has_image=False, price=None):
        ticket = Ticket(
            policy="controller",
            budget_ms=budget_ms,
            price=price,
            size=RequestSize(image=ImageSize.SMALL if has_image else ImageSize.NONE),
            arrived_s=self.clock(),
            on_turn=lambda: self.turns.append(name),
        )
        self.queue.arrive(ticket)
        return ticket

    def left_ms(self, ticket):
        """With how much of its budget a request begins."""
        return self.queue.begin(ticket).budget_ms

    def answer(
        self, ticket, latency_ms, wall_ms=None, *, is_cheapest=False, is_whole=True, price=0.0
    ):
        """Ends an episode that took as long as the clock says."""
        wall_ms = latency_ms if wall_ms is None else wall_ms
        answer = Answered(
            price=price,
            latency_ms=latency_ms,
            wall_ms=wall_ms,
            is_cheapest=is_cheapest,
            is_whole=is_whole,
        )
        self.queue.observe(ticket, answer)


def test_as_many_run_as_there_are_replicas_in_the_order_of_equal_budgets():
    desk = Desk(num_replicas=2)
    tickets = [desk.arrive(name) for name in "abcd"]
    assert desk.turns == ["a", "b"]
    desk.queue.leave(tickets[1])
    assert desk.turns == ["a", "b", "c"]
    desk.queue.leave(tickets[0])
    assert desk.turns == ["a", "b", "c", "d"]
    assert (desk.queue.num_running, desk.queue.num_waiting) == (2, 0)


def test_a_request_begins_with_what_the_wait_has_left_of_its_budget():
    desk = Desk()
    first, second = desk.arrive("a"), desk.arrive("b", 100.0)
    desk.clock.pass_ms(30)
    desk.queue.leave(first)
    desk.clock.pass_ms(1)  # from its turn to its beginning, which is no wait
    assert desk.left_ms(second) == pytest.approx(69)
    assert desk.queue.waited_ms(second) == pytest.approx(30)
    assert not second.is_late


def test_what_an_answer_needs_beyond_its_latency_is_kept_off_the_budget():
    desk = Desk()
    first = desk.arrive("a")
    desk.queue.begin(first)
    desk.clock.pass_ms(42)
    desk.answer(first, 30.0, 30.0)
    desk.queue.leave(first)
    second = desk.arrive("b", 100.0)
    assert desk.left_ms(second) == pytest.approx(88)
    picture = desk.arrive("c", 100.0, has_image=True)
    desk.queue.leave(second)
    assert desk.left_ms(picture) == pytest.approx(100)


def test_the_earliest_deadline_comes_first_and_begins_with_all_that_is_left():
    desk = Desk()
    first = desk.arrive("a", 900.0)
    for name, budget_ms in (("b", 800.0), ("c", 300.0), ("d", 500.0)):
        desk.arrive(name, budget_ms)
    assert desk.left_ms(first) == pytest.approx(900), "nothing is kept back for those who wait"
    desk.clock.pass_ms(100)
    last = desk.arrive("e", 300.0)  # due after c and before d
    desk.queue.leave(first)
    for _ in range(3):
        (running,) = desk.queue._running
        desk.queue.leave(running)
    assert desk.turns == ["a", "c", "e", "d", "b"]
    assert last.due_s == pytest.approx(100.4)


def test_a_long_budget_is_overtaken_for_some_time_only():
    desk = Desk(late="cheapest")
    running = desk.arrive("a")
    desk.arrive("long", 60_000.0)
    for name in "bcdefgh":
        desk.arrive(name, 500.0)
        desk.queue.leave(running)
        (running,) = desk.queue._running
        desk.clock.pass_ms(1000)
    assert desk.turns[:7] == ["a", "b", "c", "d", "e", "f", "long"]


def test_a_request_that_is_late_gives_way_to_one_that_is_not():
    desk = Desk(late="cheapest")
    first = desk.arrive("a")
    desk.arrive("late", 50.0)
    desk.clock.pass_ms(45)
    desk.arrive("b", 200.0)
    desk.queue.leave(first)
    assert desk.turns == ["a", "b"]
    (running,) = desk.queue._running
    desk.queue.leave(running)
    assert desk.turns == ["a", "b", "late"]


def test_in_a_full_queue_a_late_request_loses_its_place_to_one_that_is_not():
    desk = Desk(late="cheapest", max_waiting=1)
    desk.arrive("a")
    late = desk.arrive("late", 50.0)
    with pytest.raises(ApiError, match="the queue is full"):
        desk.arrive("b", 200.0)  # the one that waits can still be answered
    desk.clock.pass_ms(45)
    with pytest.raises(ApiError, match="the queue is full"):
        desk.arrive("hopeless", 5.0)
    desk.arrive("b", 200.0)
    assert desk.turns == ["a", "late"]
    assert late.is_given_up
    with pytest.raises(ApiError, match="the queue is full") as refusal:
        desk.queue.begin(late)
    assert refusal.value.status == 429
    desk.queue.leave(late)
    assert (desk.queue.num_running, desk.queue.num_waiting) == (1, 1)


CURVE = PriceCurve(prices=(0.0, 0.1, 1.0), time_ms=(80.0, 60.0, 40.0))


def test_the_price_rises_with_those_who_wait_and_is_the_requests_own_without_them():
    desk = Desk(max_waiting=100)
    desk.queue.pricing = LoadPrice(own_price=0.02, curve=CURVE)
    ticket = desk.arrive("a", 1000.0)
    assert desk.queue.begin(ticket) == Terms(budget_ms=1000.0, price=0.02)
    ticket.price = 0.0
    assert desk.queue.begin(ticket).price == 0.0
    prices = []
    for _ in range(20):
        desk.arrive("b", 1000.0)
        prices.append(desk.queue.begin(ticket).price)
    assert prices == sorted(prices)
    assert (prices[0], prices[-1]) == (0.0, 1.0)
    ticket.price = 1.5
    assert desk.queue.begin(ticket).price == 1.5


def test_the_price_learns_from_answers_but_not_from_late_ones():
    desk = Desk()
    desk.queue.pricing = LoadPrice(own_price=0.02, curve=CURVE)
    ticket = desk.arrive("a", 1000.0)
    desk.clock.pass_ms(130)
    desk.answer(ticket, 120.0, price=0.1)
    service = desk.queue.pricing.service_of("controller")
    assert (service.scale, service.overhead_ms) == pytest.approx((2.0, 10.0))
    ticket.is_late = True
    desk.answer(ticket, 1.0, price=0.1)
    assert desk.queue.pricing.service_of("controller") == service


def test_budgets_are_put_on_the_clock_of_a_device_that_others_slow_down():
    desk = Desk(late="refuse")
    for _ in range(200):
        ticket = desk.arrive("a", 1000.0)
        desk.queue.begin(ticket)
        desk.clock.pass_ms(50)
        desk.answer(ticket, 20.0, 40.0)
        desk.queue.leave(ticket)
    assert desk.queue.estimates.slowdown == pytest.approx(2)
    ticket = desk.arrive("b", 110.0)
    assert desk.left_ms(ticket) == pytest.approx(50)  # 10 ms are overhead
    desk.queue.leave(ticket)
    with pytest.raises(ApiError, match="the cheapest takes about 30 ms"):
        desk.arrive("c", 29.0)


def test_late_requests_are_answered_by_the_cheapest_configuration():
    desk = Desk(late="cheapest")
    first, second = desk.arrive("a"), desk.arrive("b", 50.0)
    desk.clock.pass_ms(45)
    desk.queue.leave(first)
    assert desk.left_ms(second) == pytest.approx(5)
    assert second.is_late
    third = desk.arrive("c", 50.0)
    desk.clock.pass_ms(500)
    desk.queue.leave(second)
    assert desk.left_ms(third) == LEAST_MS
    assert third.is_late


def test_late_requests_are_refused_when_their_turn_comes():
    desk = Desk(late="refuse")
    first, second = desk.arrive("a"), desk.arrive("b", 50.0)
    desk.clock.pass_ms(45)
    desk.queue.leave(first)
    with pytest.raises(ApiError, match="no configuration answers this within 50 ms") as refusal:
        desk.queue.begin(second)
    assert (refusal.value.status, refusal.value.code) == (429, "busy")
    assert refusal.value.headers() == {"Retry-After": "1"}


def test_requests_that_would_be_late_are_refused_at_once():
    desk = Desk(late="refuse")
    running = desk.arrive("a", 400.0)
    desk.queue.begin(running)
    desk.clock.pass_ms(80)
    desk.answer(running, 80.0)
    desk.arrive("b", 400.0)
    desk.arrive("c", 22.0)
    # Half of the running one, c, and its own answer take at least 25 ms.
    with pytest.raises(ApiError, match="2 requests wait, about 200 ms"):
        desk.arrive("d", 24.9)
    desk.arrive("d", 25.1)


def test_the_queue_is_bounded():
    desk = Desk(max_waiting=2)
    tickets = [desk.arrive(name) for name in "abc"]
    with pytest.raises(ApiError, match="the queue is full") as refusal:
        desk.arrive("d")
    assert (refusal.value.status, refusal.value.code) == (429, "queue_full")
    desk.queue.leave(tickets[2])  # its client left
    desk.arrive("e")
    assert Desk(max_waiting=0).arrive("a").begun_s is not None


def test_retry_after_is_the_time_that_the_queue_needs():
    desk = Desk(max_waiting=9)
    first = desk.arrive("a")
    desk.clock.pass_ms(1000)
    desk.answer(first, 900.0, 900.0)
    for name in "bcdefghij":
        desk.arrive(name)
    with pytest.raises(ApiError) as refusal:
        desk.arrive("k")
    assert refusal.value.headers() == {"Retry-After": "10"}  # nine, and the rest of the first


def test_without_replicas_requests_wait_for_one():
    desk = Desk(num_replicas=0)
    desk.arrive("a")
    assert desk.turns == []
    desk.queue.resize(1)
    assert desk.turns == ["a"]


def test_a_request_that_lost_its_replica_is_the_next_one():
    desk = Desk()
    first, second = desk.arrive("a"), desk.arrive("b")
    desk.queue.resize(0)
    desk.queue.wait_again(first)
    assert (desk.queue.num_running, desk.queue.num_waiting) == (0, 2)
    desk.clock.pass_ms(60)
    desk.queue.resize(1)
    assert desk.turns == ["a", "a"]
    assert desk.left_ms(first) == pytest.approx(40)
    desk.queue.leave(second)
    assert desk.queue.num_waiting == 0


def test_a_request_that_left_twice_is_gone_once():
    desk = Desk()
    first = desk.arrive("a")
    desk.arrive("b")
    desk.queue.leave(first)
    desk.queue.leave(first)
    assert desk.queue.num_running == 1


def refused(desk, budget_ms, **size):
    with pytest.raises(ApiError) as refusal:
        desk.arrive("x", budget_ms, **size)
    return refusal.value


def test_refusals_and_short_answers_leave_the_late_guard_on():
    desk = Desk(late="refuse")
    for _ in range(400):
        refused(desk, 9.0)
    for _ in range(400):
        ticket = desk.arrive("short", 1000.0)  # max_tokens=1
        desk.clock.pass_ms(1)
        desk.answer(ticket, 1.0, is_cheapest=True, is_whole=False)
        desk.queue.leave(ticket)
    assert refused(desk, 9.0).code == "budget_too_short"
    for _ in range(400):
        ticket = desk.arrive("tiny", 1000.0)
        desk.clock.pass_ms(1)
        desk.answer(ticket, 1.0, is_cheapest=True)
        desk.queue.leave(ticket)
    assert refused(desk, 5.9).code == "budget_too_short", "60 % of what was measured"
    assert refused(desk, 19.0, has_image=True).code == "budget_too_short", "another size"


def test_an_estimate_that_refuses_everything_is_forgotten():
    desk = Desk(late="refuse")
    for _ in range(100):
        ticket = desk.arrive("slow", 5000.0)
        desk.clock.pass_ms(1000)
        desk.answer(ticket, 900.0, is_cheapest=True)
        desk.queue.leave(ticket)
    assert refused(desk, 100.0).status == 400
    desk.clock.pass_ms(1e3 * STALE_S + 1)
    refused(desk, 5.9)
    ticket = desk.arrive("fast", 100.0)
    desk.clock.pass_ms(20)
    desk.answer(ticket, 15.0, is_cheapest=True)
    desk.queue.leave(ticket)
    assert desk.turns[-1] == "fast"


def test_only_what_a_retry_can_cure_may_be_tried_again():
    desk = Desk(late="refuse")
    never = refused(desk, 9.0)
    assert (never.status, never.headers()) == (400, {"x-should-retry": "false"})
    assert never.param == "latency_budget_ms"
    desk.arrive("a", 400.0)
    desk.arrive("b", 22.0)
    later = refused(desk, 24.0)
    assert (later.status, later.code, later.headers()) == (429, "busy", {"Retry-After": "1"})

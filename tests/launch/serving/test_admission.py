"""The queue, on a clock that the test moves."""

import pytest

from launch.serving.admission import LEAST_MS, Admission, QueueConfig
from launch.serving.errors import ApiError
from launch.serving.estimates import CheapestTimes, Estimates, Observation


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
        cheapest = CheapestTimes(image_ms=20.0, text_ms=10.0)
        self.queue = Admission(
            config=QueueConfig(**config), estimates=Estimates(cheapest), now=self.clock
        )
        self.queue.resize(num_replicas)

    def arrive(self, name, budget_ms=100.0, *, has_image=False):
        return self.queue.arrive(
            budget_ms=budget_ms,
            has_image=has_image,
            arrived_s=self.clock(),
            on_turn=lambda: self.turns.append(name),
        )


def test_as_many_run_as_there_are_replicas_in_the_order_of_arrival():
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
    assert desk.queue.begin(second) == pytest.approx(69)
    assert desk.queue.waited_ms(second) == pytest.approx(30)
    assert not second.is_late


def test_what_an_answer_needs_beyond_its_latency_is_kept_off_the_budget():
    desk = Desk()
    first = desk.arrive("a")
    desk.queue.begin(first)
    desk.clock.pass_ms(42)
    desk.queue.observe(first, latency_ms=30.0, wall_ms=30.0, is_cheapest=False)
    desk.queue.leave(first)
    second = desk.arrive("b", 100.0)
    assert desk.queue.begin(second) == pytest.approx(88)
    picture = desk.arrive("c", 100.0, has_image=True)
    desk.queue.leave(second)
    assert desk.queue.begin(picture) == pytest.approx(100)


def test_the_time_until_a_deadline_is_shared_by_all_who_come_before_it():
    desk = Desk()
    first = desk.arrive("a", 400.0)
    desk.arrive("b", 120.0)
    assert desk.queue.begin(first) == pytest.approx(60)
    desk.arrive("c", 90.0)
    assert desk.queue.begin(first) == pytest.approx(30)
    desk.arrive("d", 30.0)  # four turns, and less than the cheapest configuration takes
    assert desk.queue.begin(first) == pytest.approx(30)


def test_with_two_replicas_half_as_many_come_before():
    desk = Desk(num_replicas=2)
    first = desk.arrive("a", 400.0)
    for name in "bc":
        desk.arrive(name, 150.0)
    assert desk.queue.begin(first) == pytest.approx(100)


def test_budgets_are_put_on_the_clock_of_a_device_that_others_slow_down():
    desk = Desk(late="refuse")
    for _ in range(200):
        ticket = desk.arrive("a", 1000.0)
        desk.queue.begin(ticket)
        desk.clock.pass_ms(50)
        desk.queue.observe(ticket, latency_ms=20.0, wall_ms=40.0, is_cheapest=False)
        desk.queue.leave(ticket)
    assert desk.queue.estimates.slowdown == pytest.approx(2)
    ticket = desk.arrive("b", 110.0)
    assert desk.queue.begin(ticket) == pytest.approx(50)  # 10 ms are overhead
    desk.queue.leave(ticket)
    with pytest.raises(ApiError, match="the cheapest takes about 20 ms"):
        desk.arrive("c", 29.0)


def test_late_requests_are_answered_by_the_cheapest_configuration():
    desk = Desk(late="cheapest")
    first, second = desk.arrive("a"), desk.arrive("b", 50.0)
    desk.clock.pass_ms(45)
    desk.queue.leave(first)
    assert desk.queue.begin(second) == pytest.approx(5)
    assert second.is_late
    third = desk.arrive("c", 50.0)
    desk.clock.pass_ms(500)
    desk.queue.leave(second)
    assert desk.queue.begin(third) == LEAST_MS
    assert third.is_late


def test_late_requests_are_refused_when_their_turn_comes():
    desk = Desk(late="refuse")
    first, second = desk.arrive("a"), desk.arrive("b", 50.0)
    desk.clock.pass_ms(45)
    desk.queue.leave(first)
    with pytest.raises(ApiError, match="no configuration answers this within 50 ms") as refusal:
        desk.queue.begin(second)
    assert (refusal.value.status, refusal.value.code) == (429, "budget_too_short")
    assert refusal.value.headers() == {"Retry-After": "1"}


def test_requests_that_would_be_late_are_refused_at_once():
    desk = Desk(late="refuse")
    running = desk.arrive("a", 400.0)
    desk.queue.begin(running)
    desk.clock.pass_ms(80)
    desk.queue.observe(running, latency_ms=80.0, wall_ms=80.0, is_cheapest=False)
    desk.arrive("b", 400.0)  # waits half of 80 ms, on average
    with pytest.raises(ApiError, match="1 requests wait, about 120 ms"):
        desk.arrive("c", 125.0)
    desk.arrive("c", 135.0)


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
    desk.queue.observe(first, latency_ms=900.0, wall_ms=900.0, is_cheapest=False)
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
    assert desk.queue.begin(first) == pytest.approx(20), "shared with the other one"
    desk.queue.leave(second)
    assert desk.queue.num_waiting == 0


def test_a_request_that_left_twice_is_gone_once():
    desk = Desk()
    first = desk.arrive("a")
    desk.arrive("b")
    desk.queue.leave(first)
    desk.queue.leave(first)
    assert desk.queue.num_running == 1


def test_an_estimate_that_refuses_everything_is_doubted():
    desk = Desk(late="refuse")
    desk.queue.estimates.start(CheapestTimes(image_ms=1000.0, text_ms=1000.0))
    for _ in range(500):
        try:
            desk.arrive("a", 100.0)
            return
        except ApiError:
            continue
    pytest.fail("nothing was ever accepted")


def test_the_cheapest_configurations_latency_follows_its_answers():
    estimates = Estimates(CheapestTimes(image_ms=20.0, text_ms=10.0))
    slow = Observation(
        has_image=True, is_cheapest=True, latency_ms=30.0, wall_ms=30.0, replica_ms=33.0
    )
    estimates.observe(slow)
    assert estimates.cheapest_ms(True) == pytest.approx(21)
    assert estimates.cheapest_ms(False) == 10
    assert estimates.overhead_ms(True) == pytest.approx(3)
    assert estimates.replica_ms == pytest.approx(33)
    estimates.observe(
        Observation(has_image=False, is_cheapest=False, latency_ms=8.0, wall_ms=8.0, replica_ms=8.0)
    )
    assert estimates.cheapest_ms(False) == 8, "nothing is faster than the cheapest"

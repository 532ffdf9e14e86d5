"""The server's own queue with the profile's outcomes, on a simulated clock, next to the study."""

import contextlib
from dataclasses import dataclass, field

import pytest

from envs.spec import CHEAPEST_KNOBS
from launch.serving.admission import Admission, Answered, QueueConfig, Ticket
from launch.serving.errors import ApiError
from launch.serving.estimates import ImageSize, RequestSize
from launch.serving.pricing import LoadPrice
from studies.load_simulation import PriceByLoad, simulate
from studies.load_world import OWN_PRICE, LoadSimulationConfig, World
from tests.launch.serving.asgi import cheapest_times

PICTURE = RequestSize(image=ImageSize.SMALL)


@pytest.fixture(scope="module")
def world():
    return World(LoadSimulationConfig(seconds=40.0))


@dataclass
class SimulatedServer:
    """One replica behind the queue, which takes as long as the profile says."""

    world: World
    table: object
    late: str
    now_s: float = 0.0
    right: float = 0.0
    turns: list = field(default_factory=list)

    def __post_init__(self):
        pricing = LoadPrice(own_price=OWN_PRICE, curve=self.world.curve(self.table))
        self.queue = Admission(
            config=QueueConfig(late=self.late), pricing=pricing, now=lambda: self.now_s
        )
        # As measured on the smallest image, on the device's own clock.
        self.queue.estimates.start(cheapest_times(image_ms=22.0, text_ms=10.0))
        self.queue.resize(1)

    def play(self, arrivals):
        """Right answers in time."""
        busy_until_s, running, pending = 0.0, None, list(arrivals)
        while pending or running:
            if running is None or (pending and pending[0].at_s <= busy_until_s):
                self.now_s = max(self.now_s, pending[0].at_s)
                self.arrive(pending.pop(0))
            else:
                self.now_s = busy_until_s
                self.end(*running)
                running = None
            while self.turns and running is None:
                busy_until_s, running = self.begin(*self.turns.pop(0))
        return self.right

    def arrive(self, arrival):
        ticket = Ticket(
            policy="controller",
            budget_ms=1e3 * (arrival.due_s - arrival.at_s),
            size=PICTURE,
            arrived_s=arrival.at_s,
            on_turn=lambda: self.turns.append((ticket, arrival)),
        )
        with contextlib.suppress(ApiError):
            self.queue.arrive(ticket)

    def begin(self, ticket, arrival):
        try:
            terms = self.queue.begin(ticket)
        except ApiError:
            self.queue.leave(ticket)
            return 0.0, None
        # The device's clock is that of the profile: the factor is other processes' time.
        knobs = self.table.at(terms.budget_ms, arrival.task, terms.price)
        if ticket.is_late:
            knobs = CHEAPEST_KNOBS
        column = self.world.column_of[knobs]
        wall_ms = self.world.wall_ms[arrival.sample][column]
        end_s = self.now_s + (wall_ms + self.world.config.overhead_ms) / 1e3
        return end_s, (ticket, arrival, terms.price, wall_ms, column)

    def end(self, ticket, arrival, price, wall_ms, column):
        answer = Answered(
            price=price,
            latency_ms=wall_ms / self.world.config.factor,
            wall_ms=wall_ms,
            is_cheapest=column == self.world.column_of[CHEAPEST_KNOBS],
            is_whole=True,
        )
        if self.now_s <= arrival.due_s:
            self.right += self.world.scores[arrival.sample][column]
        self.queue.observe(ticket, answer)
        self.queue.leave(ticket)


@pytest.mark.parametrize("late", ["refuse", "cheapest"])
@pytest.mark.parametrize("rate", [6.0, 16.0, 32.0])
def test_the_queue_does_what_the_study_promises(world, rate, late):
    table = world.controller()
    arrivals = world.arrivals(((rate, world.config.seconds),), seed=3)
    promised = simulate(world, PriceByLoad(world, table, world.curve(table)), arrivals).right
    assert SimulatedServer(world, table, late).play(arrivals) > 0.93 * promised

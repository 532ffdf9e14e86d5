"""A queue in front of replicas, simulated: right answers in time per second, by policy and rate.

    python -m studies.load_simulation
    python -m studies.load_simulation --replicas 4 --rates 32 64 96
    python -m studies.load_simulation --step

Scores and latencies are those of the shipped profile, times a factor; every request takes an
overhead as well. Tables are chosen on one half of its samples, requests ask about the other half.
They arrive by a Poisson process, and every policy gets the same ones. The controller is a table per
task that is chosen for (budget left, price), and its price on a loaded server is the server's own
rule, `launch.serving.pricing`. What no configuration can answer in time is dropped. The best static
configuration is chosen for each rate in hindsight. `--step` shows the price while the rate rises
from 4/s to 24/s and falls again. `--quick` simulates a few seconds.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush, heapreplace
from typing import Protocol

import numpy as np

from benchmarks.options import read_options
from envs.price_curve import PriceCurve
from envs.spec import FULL_KNOBS
from launch.analysis.knob_table import KnobTable
from launch.analysis.statistics import Interval
from launch.cluster.console import one_clear_error
from launch.serving.pricing import LoadPrice
from studies.load_world import OWN_PRICE, Arrival, LoadSimulationConfig, World

STEP = ((4.0, 20.0), (24.0, 20.0), (4.0, 20.0))
"""Rates, and for how many seconds they last, with `--step`."""

QUICK = LoadSimulationConfig(quick=True, rates=(16.0,), seconds=10.0, seeds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The moment when a replica is free: the time, all who wait, and what one of them has left."""

    now_s: float
    waiting: Sequence[Arrival]

    def left_ms(self, arrival: Arrival, world: World) -> float:
        """What is left for a request's episode, on the wall clock."""
        return 1e3 * (arrival.due_s - self.now_s) - world.config.overhead_ms


class Policy(Protocol):
    """Who comes next, and with which configuration."""

    price: float

    def arrive(self, now_s: float) -> None:
        """A request arrives."""
        ...

    def next(self, turn: Turn) -> Arrival:
        """The request whose turn it is."""
        ...

    def column(self, arrival: Arrival, turn: Turn) -> int:
        """The column of its configuration; it waits no longer."""
        ...

    def observe(self, price: float, wall_ms: float) -> None:
        """An answer that was chosen at a price has ended."""
        ...


class Static:
    """A table at its own price, in the order of deadlines."""

    def __init__(self, world: World, table: KnobTable) -> None:
        self.world, self.table, self.price = world, table, OWN_PRICE

    def arrive(self, now_s: float) -> None:
        """See `Policy.arrive`."""

    def observe(self, price: float, wall_ms: float) -> None:
        """See `Policy.observe`."""

    def next(self, turn: Turn) -> Arrival:
        """Earliest deadline first."""
        return min(turn.waiting, key=lambda arrival: arrival.due_s)

    def column(self, arrival: Arrival, turn: Turn) -> int:
        """See `Policy.column`."""
        return self.chosen(arrival, turn.left_ms(arrival, self.world))

    def chosen(self, arrival: Arrival, left_ms: float) -> int:
        """The choice for a request with some time left."""
        known_ms = left_ms / self.world.config.factor
        return self.world.column_of[self.table.at(known_ms, arrival.task, self.price)]


class FirstCome(Static):
    """A table at its own price; first come, first served."""

    def next(self, turn: Turn) -> Arrival:
        """The first who came."""
        return turn.waiting[0]


class StaticValueFirst(Static):
    """A table at its own price; whoever is expected to earn most per millisecond comes first."""

    def __init__(self, world: World, table: KnobTable) -> None:
        super().__init__(world, table)
        self.value = world.value_per_ms()

    def next(self, turn: Turn) -> Arrival:
        """The highest value per millisecond."""
        return most_valuable(self, self.value, turn)


class EqualShares(FirstCome):
    """First come, first served; the time until each deadline is shared by all who come before."""

    def column(self, arrival: Arrival, turn: Turn) -> int:
        """See `Policy.column`."""
        config, least_ms = self.world.config, self.world.least_ms - self.world.config.overhead_ms
        left_ms = turn.left_ms(arrival, self.world)
        for number, other in enumerate(turn.waiting, start=1):
            turns = number / config.replicas + 1
            spent_ms = (turns - 1) * config.overhead_ms
            share_ms = (turn.left_ms(other, self.world) - spent_ms) / turns
            if share_ms >= least_ms:
                left_ms = min(left_ms, share_ms)
        return self.chosen(arrival, left_ms)


class PriceByLoad(Static):
    """The server's rule: a price that keeps up with the load, in the order of deadlines."""

    def __init__(self, world: World, table: KnobTable, curve: PriceCurve) -> None:
        super().__init__(world, table)
        self.rule = LoadPrice(own_price=OWN_PRICE, curve=curve)

    def arrive(self, now_s: float) -> None:
        """See `Policy.arrive`."""
        self.rule.arrive(now_s)

    def observe(self, price: float, wall_ms: float) -> None:
        """See `Policy.observe`."""
        replica_ms = wall_ms + self.world.config.overhead_ms
        self.rule.observe("", price, wall_ms=wall_ms, replica_ms=replica_ms)

    def column(self, arrival: Arrival, turn: Turn) -> int:
        """See `Policy.column`."""
        self.price = self.rule.price(
            *("", None, turn.now_s),
            num_waiting=len(turn.waiting),
            num_replicas=self.world.config.replicas,
        )
        return super().column(arrival, turn)


class PriceByLoadValueFirst(PriceByLoad):
    """The same, but whoever is expected to earn most per millisecond comes first.

    A server would have to know that before the model sees a request; here it is told the task.
    """

    def __init__(self, world: World, table: KnobTable, curve: PriceCurve) -> None:
        super().__init__(world, table, curve)
        self.value = world.value_per_ms()

    def next(self, turn: Turn) -> Arrival:
        """The highest value per millisecond."""
        return most_valuable(self, self.value, turn)


def most_valuable(policy: Static, value: Mapping[str, Sequence[float]], turn: Turn) -> Arrival:
    """Of all who wait, the one whose task's score per millisecond is highest at its choice."""

    def worth(arrival: Arrival) -> float:
        column = policy.chosen(arrival, turn.left_ms(arrival, policy.world))
        return value[arrival.task][column]

    return max(turn.waiting, key=worth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What became of a simulation's requests.

    Attributes:
        right: sum of the scores of answers in time.
        prices: price of each answer, with the time of its turn.
        num_late: answers that came too late.
        num_dropped: requests that nothing could have answered in time.
    """

    right: float
    prices: Sequence[tuple[float, float]]
    num_late: int
    num_dropped: int


def simulate(world: World, policy: Policy, arrivals: Sequence[Arrival]) -> Served:
    """Plays the arrivals."""
    free_s = [0.0] * world.config.replicas
    waiting: list[Arrival] = []
    ended: list[tuple[float, float, float]] = []
    right, num_late, num_dropped, number, prices = 0.0, 0, 0, 0, []
    while number < len(arrivals) or waiting:
        now_s = free_s[0] if waiting else max(free_s[0], arrivals[number].at_s)
        while number < len(arrivals) and arrivals[number].at_s <= now_s:
            waiting.append(arrivals[number])
            policy.arrive(arrivals[number].at_s)
            number += 1
        while ended and ended[0][0] <= now_s:
            policy.observe(*heappop(ended)[1:])
        kept = [one for one in waiting if 1e3 * (one.due_s - now_s) >= world.least_ms]
        num_dropped += len(waiting) - len(kept)
        waiting = kept
        if not waiting:
            continue
        chosen = policy.next(Turn(now_s=now_s, waiting=waiting))
        waiting.remove(chosen)
        column = policy.column(chosen, Turn(now_s=now_s, waiting=waiting))
        wall_ms = world.wall_ms[chosen.sample][column]
        end_s = now_s + (wall_ms + world.config.overhead_ms) / 1e3
        heapreplace(free_s, end_s)
        heappush(ended, (end_s, policy.price, wall_ms))
        prices.append((now_s, policy.price))
        if end_s <= chosen.due_s:
            right += world.scores[chosen.sample][column]
        else:
            num_late += 1
    return Served(right=right, prices=prices, num_late=num_late, num_dropped=num_dropped)


Maker = Callable[[], Policy]

CONTROLLER, RIVAL = "price by load, earliest deadline", "best static, earliest deadline"


def policies_of(world: World) -> dict[str, list[Maker]]:
    """Policies by name, each as its candidates: the best is taken for each rate in hindsight."""
    table, full = world.controller(), KnobTable.fixed(FULL_KNOBS)
    curve, static_tables = world.curve(table), world.static_tables()
    return {
        "full, first come": [partial(FirstCome, world, full)],
        "full, earliest deadline": [partial(Static, world, full)],
        "equal shares, first come": [partial(EqualShares, world, table)],
        "best static, first come": [partial(FirstCome, world, one) for one in static_tables],
        RIVAL: [partial(Static, world, one) for one in static_tables],
        "best static, value per ms": [
            partial(StaticValueFirst, world, one) for one in static_tables
        ],
        CONTROLLER: [partial(PriceByLoad, world, table, curve)],
        "price by load, value per ms": [partial(PriceByLoadValueFirst, world, table, curve)],
    }


def goodput(world: World, makers: Sequence[Maker], rate: float) -> np.ndarray:
    """Right answers in time per second of the best candidate, by seed."""
    config = world.config
    played = [world.arrivals(((rate, config.seconds),), seed) for seed in range(config.seeds)]
    found = np.array(
        [[simulate(world, make(), one).right / config.seconds for one in played] for make in makers]
    )
    return found[found.mean(1).argmax()]


def report(config: LoadSimulationConfig) -> None:
    """Prints all policies at all rates."""
    world = World(config)
    found = {
        name: [goodput(world, makers, rate) for rate in config.rates]
        for name, makers in policies_of(world).items()
    }
    print("right answers in time per second, with 95 % intervals over seeds:")
    print(f"{'':34}", "".join(f"{rate:>10g}/s  " for rate in config.rates))
    for name, rows in found.items():
        cells = [Interval.of(row) for row in rows]
        print(f"{name:34}", "".join(f"{c.mean:6.2f} ±{c.half_width:5.2f} " for c in cells))
    ratios = [Interval.of(a / b) for a, b in zip(found[CONTROLLER], found[RIVAL], strict=True)]
    print(f"{'ratio of the two in that order':34}", end=" ")
    print("".join(f"{r.mean:6.2f} ±{r.half_width:5.2f} " for r in ratios))


def price_over_time(
    config: LoadSimulationConfig, phases: Sequence[tuple[float, float]] = STEP
) -> list[tuple[float, float]]:
    """The price of each answer under a rate that changes, with the time of its turn in s."""
    world = World(config)
    table = world.controller()
    policy = PriceByLoad(world, table, world.curve(table))
    return list(simulate(world, policy, world.arrivals(phases, seed=0)).prices)


def report_step(config: LoadSimulationConfig) -> None:
    """Prints the price during each two seconds of a step of the rate."""
    times_s, prices = np.array(price_over_time(config)).T
    bounds_s = np.cumsum([0.0, *(seconds for _, seconds in STEP)])
    print("price in each 2 s: mean, lowest and highest")
    for start_s in np.arange(0, bounds_s[-1], 2):
        rate = STEP[int(np.searchsorted(bounds_s, start_s, side="right")) - 1][0]
        inside = prices[(times_s >= start_s) & (times_s < start_s + 2)]
        if len(inside):
            shown = f"{inside.mean():.3f} ({inside.min():.3f} to {inside.max():.3f})"
            print(f"{start_s:4.0f} s  {rate:4g}/s  {shown}")


def main() -> int:
    """Prints the table, or the price over time."""
    config = read_options(QUICK, __doc__)
    if config.step:
        report_step(config)
    else:
        report(config)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

"""What `studies.load_simulation` simulates: requests, and replicas with the profile's outcomes.

Shapes: S samples of the profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.price_curve import PriceCurve
from envs.prices import FREE
from envs.spec import CHEAPEST_KNOBS
from launch.analysis.knob_table import KnobTable
from launch.analysis.outcomes import outcome_on
from launch.analysis.rivals import lookup_by_task
from launch.run.recipes import SHIPPED_PROFILE
from rollout.profiling.profile_table import ProfileTable
from rollout.simulation.table_samples import budgets_of, calibration_of

PRICES = (FREE, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)
CURVE_PRICES = (FREE, 0.02, 0.1, 0.2, 0.3, 1.0)
"""Prices of the tables, and those of the curve: a run's final evaluation has these."""

OWN_PRICE, NUM_TABLE_BUDGETS, SHRINKAGE = 0.02, 16, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSimulationConfig:
    """One simulation.

    Attributes:
        quick: a few seconds at one rate; its figures say nothing.
        step: shows the price under a rate that rises and falls, instead of a table.
        rates: requests per second.
        budgets_ms: budgets of the mixture, equally frequent.
        factor: wall-clock ms for each ms of the profile.
        overhead_ms: time of a request on its replica beyond its episode.
        replicas: number of replicas.
        seconds: length of one simulation.
        seeds: number of simulations of each policy at each rate.
    """

    quick: bool = False
    step: bool = False
    rates: tuple[float, ...] = (4.0, 8.0, 12.0, 16.0, 20.0, 26.0, 32.0)
    budgets_ms: tuple[float, ...] = (100.0, 200.0, 400.0)
    factor: float = 1.45
    overhead_ms: float = 8.0
    replicas: int = 1
    seconds: float = 60.0
    seeds: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request: when it comes, when its answer is due, what it asks."""

    at_s: float
    due_s: float
    sample: int
    task: str


class World:
    """What the replicas do: half of a profile to choose on, the other half to ask about.

    Args:
        config: factor, overhead and budgets.
    """

    def __init__(self, config: LoadSimulationConfig) -> None:
        profile = ProfileTable.load(SHIPPED_PROFILE)
        rows_S = np.arange(len(profile.sample_ids))
        self.config, self.full_ms = config, calibration_of(profile).full_ms
        self.known, self.asked = profile.rows(rows_S[::2]), profile.rows(rows_S[1::2])
        self.scores = self.asked.scores.tolist()
        self.wall_ms = (config.factor * self.asked.latencies_ms).tolist()
        self.column_of = {knobs: c for c, knobs in enumerate(profile.configurations)}
        # As the server estimates it: the mean, and the mean deviation from it as a margin.
        cheapest_ms = config.factor * self.known.latencies_ms[:, self.column_of[CHEAPEST_KNOBS]]
        margin_ms = np.abs(cheapest_ms - cheapest_ms.mean()).mean()
        self.least_ms = float(cheapest_ms.mean() + margin_ms) + config.overhead_ms

    def arrivals(self, phases: Sequence[tuple[float, float]], seed: int) -> list[Arrival]:
        """Requests at rates that last for some seconds each, the same ones for every policy."""
        rng, found, start_s = np.random.default_rng([seed, len(phases)]), [], 0.0
        for rate, seconds in phases:
            at_s = start_s + rng.exponential(1 / rate)
            while at_s < start_s + seconds:
                sample = int(rng.integers(len(self.scores)))
                due_s = at_s + rng.choice(self.config.budgets_ms) / 1e3
                task = self.asked.tasks[sample]
                found.append(Arrival(at_s=at_s, due_s=due_s, sample=sample, task=task))
                at_s += rng.exponential(1 / rate)
            start_s += seconds
        return found

    def controller(self) -> KnobTable:
        """The table per task for (budget left, price) that stands for the controller."""
        longest_ms = max(self.config.budgets_ms) / self.config.factor
        budgets_ms = np.geomspace(
            budgets_of(self.known).range.low_ms, longest_ms, NUM_TABLE_BUDGETS
        )
        return KnobTable.by_price(
            {
                price: lookup_by_task(
                    self.known, budgets_ms, shrinkage=SHRINKAGE, cost_per_ms=price / self.full_ms
                )
                for price in PRICES
            }
        )

    def curve(self, table: KnobTable) -> PriceCurve:
        """The curve that a run of this controller would write."""
        budgets_ms = budgets_of(self.known).evenly(5)
        found = [outcome_on(self.known, table, budgets_ms, price) for price in CURVE_PRICES]
        return PriceCurve.fitted(CURVE_PRICES, [outcome.mean_ms for outcome in found])

    def value_per_ms(self) -> dict[str, list[float]]:
        """Score per millisecond that a replica is occupied, by task and column."""
        found = {}
        for task in set(self.known.tasks):
            part = self.known.only_task(task)
            occupied_ms = self.config.factor * part.latencies_ms.mean(0) + self.config.overhead_ms
            found[task] = (part.scores.mean(0) / occupied_ms).tolist()
        return found

    def static_tables(self) -> list[KnobTable]:
        """Candidates for the best static configuration: none is both faster and more accurate."""
        accuracy, time_ms = self.known.scores.mean(0), self.known.latencies_ms.mean(0)
        found, best = [], -1.0
        for column in time_ms.argsort():
            if accuracy[column] > best:
                best = accuracy[column]
                found.append(KnobTable.fixed(self.known.configurations[column]))
        return found

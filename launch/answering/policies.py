"""Policies over one frozen model: a trained controller, or a table of configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from envs.budgets import BudgetRange
from envs.calibration import PresentTime, SteadyTime
from envs.episode import Outcome
from envs.prices import FREE, PriceRange
from envs.spec import FULL_KNOBS, TIERS, Decoding, Knobs, Sample, Tier
from envs.terms import Terms
from launch.analysis.knob_table import KnobTable
from policy.controller import Controller
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import run_configurations
from rollout.latency.drift import FollowedTime
from rollout.run_group import run_group

DEFAULT_KNOBS = Knobs(tier=Tier.MEDIUM, position=1, top_k=6, num_blocks=14)
"""The configuration that runs, at any budget, without a trained controller."""

WORTH_SAYING = 0.02
"""Relative difference in milliseconds, of a device and of a run, that the user is told of."""

Say = Callable[[str], object]
"""Called with progress messages."""


class Policy(Protocol):
    """Answers questions with a frozen model, each with the configuration that it chooses."""

    @property
    def executor(self) -> MolmoEExecutor:
        """The frozen model."""
        ...

    @property
    def source(self) -> str:
        """Where the policy comes from, in words."""
        ...

    @property
    def default_price(self) -> float:
        """Price of time of requests that state none."""
        ...

    def run(self, sample: Sample, terms: Terms, decoding: Decoding) -> Outcome:
        """One answer; the budget is in ms of the device as it is now.

        Raises:
            DataError: the sample is unusable; names it.
        """
        ...

    def warm_up(self, picture: Sample, text: Sample) -> None:
        """Runs a question on a large image and one without, so that no later one runs cold."""
        ...

    def follow(self) -> None:
        """Probes how fast the device is now, if a probe is due and useful."""
        ...


class TablePolicy:
    """The configuration of a table, which may be the same for every budget.

    Args:
        executor: the frozen model.
        table: configurations by budget in calibrated ms.
        source: see `Policy`.
        present: how fast the device runs, by the calibration.
    """

    default_price = FREE

    def __init__(
        self,
        executor: MolmoEExecutor,
        table: KnobTable,
        source: str,
        present: PresentTime | None = None,
    ) -> None:
        self.executor, self.table, self.source = executor, table, source
        self._present = present or SteadyTime()

    def run(self, sample: Sample, terms: Terms, decoding: Decoding) -> Outcome:
        """See `Policy.run`."""
        known_ms = self._present.to_calibrated(terms.budget_ms)
        knobs = self.table.at(known_ms, price=terms.price)
        (execution,) = run_configurations(self.executor, sample, [knobs], terms.budget_ms, decoding)
        return Outcome.of(execution, {}, SteadyTime())

    def warm_up(self, picture: Sample, text: Sample) -> None:
        """See `Policy.warm_up`; runs every configuration of the table."""
        for knobs in self.table.configurations():
            for sample in (picture, text):
                run_configurations(self.executor, sample, [knobs])

    def follow(self) -> None:
        """Does nothing: a controller that shares the device does the probing."""


class ControllerPolicy:
    """A controller chooses, by a budget in the milliseconds of its run.

    Args:
        executor: the frozen model.
        controller: the controller, on the model's device.
        present: how fast the device runs, by the calibration of the controller's run.
        source: see `Policy`.
        say: called when the controller sees a different budget from the one requested.
    """

    def __init__(
        self,
        executor: MolmoEExecutor,
        controller: Controller,
        present: PresentTime,
        source: str,
        say: Say,
    ) -> None:
        controller.check_compatible(d_model=executor.d_model, image_dim=executor.image_dim)
        self.executor, self.controller, self.source = executor, controller, source
        self.range, self.present, self._say = controller.config.budget_range, present, say

    @property
    def default_price(self) -> float:
        """See `Policy.default_price`."""
        return self.controller.config.default_price

    def run(self, sample: Sample, terms: Terms, decoding: Decoding) -> Outcome:
        """See `Policy.run`."""
        known_ms = known_budget_ms(terms.budget_ms, self.range, self.present, self._say)
        price = known_price(terms.price, self.controller.config.price_range, self._say)
        return self._run(sample, Terms(budget_ms=known_ms, price=price), decoding)

    def warm_up(self, picture: Sample, text: Sample) -> None:
        """See `Policy.warm_up`; runs every tier, because the controller may choose any.

        The device is probed after that, when it is warm.
        """
        for tier in TIERS:
            run_configurations(self.executor, picture, [replace(FULL_KNOBS, tier=tier)])
        for sample in (picture, text):
            self._run(sample, Terms(budget_ms=self.range.high_ms), Decoding())
        self.follow()

    def follow(self) -> None:
        """See `Policy.follow`."""
        if isinstance(self.present, FollowedTime):
            self.present.follow()

    def _run(self, sample: Sample, terms: Terms, decoding: Decoding) -> Outcome:
        finished = run_group(
            self.executor, self.controller, self.present, sample, terms, (None,), decoding
        )
        return finished.outcomes[0]


def known_budget_ms(budget_ms: float, own: BudgetRange, present: PresentTime, say: Say) -> float:
    """The budget in the controller's milliseconds, clipped to its range; says what that changes."""
    device_ms, budget_ms = budget_ms, present.to_calibrated(budget_ms)
    if abs(device_ms / budget_ms - 1) > WORTH_SAYING:
        say(f"{device_ms:g} ms of this device now are {budget_ms:.1f} ms of the run's calibration")
    known_ms = min(max(budget_ms, own.low_ms), own.high_ms)
    if known_ms != budget_ms:
        say(
            f"the controller was trained for budgets of {own.low_ms:g} to {own.high_ms:g} ms: it "
            f"chooses as if the budget were {known_ms:g} ms"
        )
    return known_ms


def known_price(price: float, own: PriceRange | None, say: Say) -> float:
    """The price clipped to those that a controller was trained for; says what that changes."""
    if price == FREE:
        return price
    if own is None:
        say(f"the controller was trained without prices: it ignores the price {price:g}")
        return FREE
    known = min(max(price, own.low), own.high)
    if known != price:
        say(
            f"the controller was trained for prices of 0 and {own.low:g} to {own.high:g}: it "
            f"chooses as if the price were {known:g}"
        )
    return known

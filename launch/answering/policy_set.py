"""Policies by name over one frozen model: a trained controller, its rivals, any configuration.

A server offers them as models, so that a load test compares them on the same device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from envs.price_curve import PRICE_CURVE_NAME, PriceCurve
from envs.prices import FREE
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Knobs, knobs_by_name
from launch.analysis.knob_table import KnobTable
from launch.analysis.rivals import best_static, lookup
from launch.answering.answerer import Answerer, warm_up
from launch.answering.loading import Settings, load_controller, load_default, run_or_shipped
from launch.answering.policies import ControllerPolicy, Policy, Say, TablePolicy
from launch.run.recipes import SHIPPED_PROFILE
from launch.run.resume import calibration_from_state, fingerprint_from_state
from launch.storage.fetched_run import local_folder
from learner.checkpoint import CheckpointStore, find_controller
from learner.manifest import STATE_NAME
from rollout.executor import MolmoEExecutor
from rollout.profiling.conversion import calibrated
from rollout.profiling.profile_table import ProfileTable

log = logging.getLogger(__name__)

TABLE_BUDGETS = 16
"""Number of budgets in a lookup table."""

TABLE_PRICES = (FREE, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
"""Prices in a lookup table."""


class PolicySet:
    """Answerers by the name of their policy, over one frozen model.

    Args:
        default: name of the policy that answers if none is requested.
        policies: the policies by name, all on the same executor, which is warm.
        price_curve: device time of the default policy by price, if it is known.
    """

    def __init__(
        self,
        default: str,
        policies: Mapping[str, Policy],
        price_curve: PriceCurve | None = None,
    ) -> None:
        self.default, self.price_curve = default, price_curve
        self._policies = dict(policies)
        self._executor = policies[default].executor

    @classmethod
    def load(
        cls,
        run: str | Path | None = None,
        *,
        worker_settings: Settings = None,
        executor_settings: Settings = None,
        say: Say = log.info,
    ) -> PolicySet:
        """Loads a model with all policies that exist for it, and warms it up.

        Args:
            run: a run folder or the folder of a checkpoint; None takes the controller that ships
                with the small model, or has neither controller nor tables for another model.
            worker_settings: see `Answerer.load`.
            executor_settings: see `Answerer.load`.
            say: called with progress messages.

        Raises:
            ValueError: see `Answerer.load`.
        """
        settings = (worker_settings, executor_settings)
        run = run_or_shipped(run, worker_settings, say)
        policies: dict[str, Policy] = {}
        curve = None
        if run is None:
            policies["default"] = load_default(*settings)
        else:
            controller = load_controller(run, *settings, lambda _text: None)
            policies["controller"] = controller
            folder = find_controller(local_folder(run))
            policies |= tables(folder, controller, say)
            curve = price_curve_of(folder, say)
        default, first = next(iter(policies.items()))
        fixed = {"full": FULL_KNOBS, "cheapest": CHEAPEST_KNOBS}
        policies |= {name: _fixed(first.executor, knobs) for name, knobs in fixed.items()}
        say("warming up ...")
        warm_up(first)
        return cls(default, policies, curve)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the policies, the default one first; single configurations left out."""
        return tuple(self._policies)

    @property
    def default_price(self) -> float:
        """Price of time of requests that state none."""
        return self._policies[self.default].default_price

    def budget_range_ms(self) -> tuple[float, float] | None:
        """The budgets that the controller was trained for, in ms of the device as it is now."""
        first = self._policies[self.default]
        if not isinstance(first, ControllerPolicy):
            return None
        low_ms, high_ms = first.range.low_ms, first.range.high_ms
        return first.present.to_present(low_ms), first.present.to_present(high_ms)

    def answerer(self, name: str) -> Answerer:
        """The policy of this name, or the configuration.

        Raises:
            KeyError: there is none.
        """
        if name in self._policies:
            return Answerer(self._policies[name])
        return Answerer(_fixed(self._executor, knobs_by_name()[name]))


def _fixed(executor: MolmoEExecutor, knobs: Knobs) -> TablePolicy:
    return TablePolicy(executor, KnobTable.fixed(knobs), f"configuration {knobs}")


def price_curve_of(folder: Path, say: Say) -> PriceCurve | None:
    """The curve that a checkpoint's run wrote when it ended; says so if there is none.

    Raises:
        ValueError: the curve's file is unusable.
    """
    path = folder.parent.parent / PRICE_CURVE_NAME
    if not path.is_file():
        say(f"the price of time will not rise with the load: there is no {path}")
        return None
    return PriceCurve.load(path)


def tables(folder: Path, controller: ControllerPolicy, say: Say) -> dict[str, Policy]:
    """The best static configuration and the lookup table, chosen on the shipped profile.

    They are for the budgets of the controller's run, in its milliseconds. There are none, and a
    line says why, if the profile is of another model, or the run's latencies were simulated.
    """
    try:
        if not (folder / STATE_NAME).is_file():
            raise ValueError("the controller was saved outside a run")
        state = CheckpointStore(folder.parent).load(folder).state
        calibration, trained_on = calibration_from_state(state), fingerprint_from_state(state)
        if trained_on is None or calibration.clock == "simulated":
            raise ValueError("its latencies were simulated")
        profile = ProfileTable.load(SHIPPED_PROFILE)
        profile.check_fingerprint(trained_on, "the shipped profile", f"the controller in {folder}")
    except ValueError as error:
        say(f"no lookup table and no best static configuration are served: {error}")
        return {}
    table, own = calibrated(profile, calibration), controller.range
    budgets_ms = np.linspace(own.low_ms, own.high_ms, TABLE_BUDGETS)
    costs = {price: price / calibration.full_ms for price in TABLE_PRICES}
    every = np.ones(len(table.configurations), dtype=bool)
    by_budget = {p: lookup(table, budgets_ms, every, cost) for p, cost in costs.items()}
    best_of_each = {
        p: KnobTable.fixed(table.configurations[best_static(table, budgets_ms, cost)])
        for p, cost in costs.items()
    }
    found = {
        "lookup": (KnobTable.by_price(by_budget), "lookup table from the shipped profile"),
        "static": (KnobTable.by_price(best_of_each), "best static configuration of each price"),
    }
    return {
        name: TablePolicy(controller.executor, rows, words, controller.present)
        for name, (rows, words) in found.items()
    }

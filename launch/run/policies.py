"""Policies by name over one frozen model: a trained controller, its rivals, any configuration.

A server offers them as models, so that a load test compares them on the same device.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.calibration import PresentTime
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, BudgetRange, Knobs, Sample, knobs_by_name
from launch.analysis.baselines import best_static, lookup
from launch.run.deciders import (
    Decider,
    FixedKnobs,
    Say,
    Settings,
    TrainedController,
    known_budget_ms,
    load_controller,
    load_default,
    run_knobs,
)
from launch.run.fetched_run import local_folder
from launch.run.inference import Answerer, warm_up
from launch.run.recipes import SHIPPED_PROFILE
from launch.run.resume import calibration_from_state, fingerprint_from_state
from learner.checkpoint import CheckpointStore, find_controller
from learner.manifest import STATE_NAME
from rollout.executor import MolmoEExecutor
from rollout.profiling.conversion import calibrated
from rollout.profiling.profile_table import ProfileTable

log = logging.getLogger(__name__)

TABLE_BUDGETS = 16
"""Number of budgets in a lookup table."""


class LookupTable:
    """Decides by the budget alone: the entry of the largest budget that is not above it.

    Args:
        executor: the frozen model.
        entries: configurations by budget in calibrated ms, in ascending order.
        present: how fast the device runs, by the calibration.
        source: where the table comes from, in words.
    """

    def __init__(
        self,
        executor: MolmoEExecutor,
        entries: Mapping[float, Knobs],
        present: PresentTime,
        source: str,
    ) -> None:
        self.executor, self.source = executor, source
        self._budgets_ms, self._knobs = list(entries), list(entries.values())
        self._range = BudgetRange(low_ms=self._budgets_ms[0], high_ms=self._budgets_ms[-1])
        self._present = present

    def run(self, sample: Sample, budget_ms: float) -> Mapping[str, Any]:
        """See `Decider.run`."""
        known_ms = known_budget_ms(budget_ms, self._range, self._present, lambda _text: None)
        knobs = self._knobs[bisect_right(self._budgets_ms, known_ms) - 1]
        return run_knobs(self.executor, sample, knobs, budget_ms)

    def warm_up(self, picture: Sample, text: Sample) -> None:
        """Does nothing: whoever owns the model has run every tier."""

    def follow(self) -> None:
        """Does nothing: the controller that shares the device follows it."""


class Policies:
    """Answerers by the name of their policy, over one frozen model.

    Args:
        default: name of the policy that answers if none is asked for.
        deciders: the policies by name, all on the same executor, which is warm.
    """

    def __init__(self, default: str, deciders: Mapping[str, Decider]) -> None:
        self.default = default
        self._deciders = dict(deciders)
        self._executor = deciders[default].executor

    @classmethod
    def load(
        cls,
        run: str | Path | None = None,
        *,
        worker_settings: Settings = None,
        executor_settings: Settings = None,
        say: Say = log.info,
    ) -> Policies:
        """Loads a model with all policies that there are for it, and warms it up.

        Args:
            run: a run folder or the folder of a checkpoint; None has no controller and no tables.
            worker_settings: see `Answerer.load`.
            executor_settings: see `Answerer.load`.
            say: called with progress messages.

        Raises:
            ValueError: see `Answerer.load`.
        """
        settings = (worker_settings, executor_settings)
        deciders: dict[str, Decider] = {}
        if run is None:
            first: Decider = load_default(*settings)
            deciders["default"] = first
        else:
            first = controller = load_controller(run, *settings, lambda _text: None)
            deciders["controller"] = controller
            deciders |= tables(find_controller(local_folder(run)), controller, say)
        fixed = {"full": FULL_KNOBS, "cheapest": CHEAPEST_KNOBS}
        deciders |= {name: _fixed(first.executor, knobs) for name, knobs in fixed.items()}
        say("warming up ...")
        warm_up(first)
        return cls(next(iter(deciders)), deciders)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the policies, the default one first; single configurations left out."""
        return tuple(self._deciders)

    def budget_range_ms(self) -> tuple[float, float] | None:
        """The budgets that the controller was trained for, in ms of the device as it is now."""
        first = self._deciders[self.default]
        if not isinstance(first, TrainedController):
            return None
        low_ms, high_ms = first.range.low_ms, first.range.high_ms
        return first.present.to_present(low_ms), first.present.to_present(high_ms)

    def answerer(self, name: str) -> Answerer:
        """The policy of this name, or the configuration.

        Raises:
            KeyError: there is none.
        """
        if name in self._deciders:
            return Answerer(self._deciders[name])
        return Answerer(_fixed(self._executor, knobs_by_name()[name]))


def _fixed(executor: MolmoEExecutor, knobs: Knobs) -> FixedKnobs:
    return FixedKnobs(executor, knobs, f"configuration {knobs}")


def tables(folder: Path, controller: TrainedController, say: Say) -> dict[str, Decider]:
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
    every = np.ones(len(table.configurations), dtype=bool)
    chosen = [table.configurations[c] for c in lookup(table, budgets_ms, every).columns]
    static = table.configurations[best_static(table, budgets_ms).columns[0]]
    entries = dict(zip(budgets_ms.tolist(), chosen, strict=True))
    executor, source = controller.executor, "lookup table from the shipped profile"
    return {
        "lookup": LookupTable(executor, entries, controller.present, source),
        "static": FixedKnobs(executor, static, f"best static configuration {static}"),
    }

"""What decides on a configuration for a question: a trained controller, or nothing but a constant.

Both load the frozen model that they run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from envs.calibration import PresentTime, SteadyTime
from envs.reward import BudgetReward
from envs.spec import (
    FULL_KNOBS,
    TIERS,
    BudgetRange,
    BudgetSampler,
    Knobs,
    Sample,
    Tier,
)
from launch.run.fetched_run import local_folder
from launch.run.resume import calibration_from_state, fingerprint_from_state, worker_of
from learner.checkpoint import Checkpoint, CheckpointStore, find_controller
from learner.manifest import STATE_NAME
from policy.controller import Controller
from rollout.build import WorkerConfig, build_executor
from rollout.executor import MolmoEExecutor
from rollout.fingerprint import Fingerprint
from rollout.group_runner import GroupRunner
from rollout.group_sharing import MolmoEGroupSession
from rollout.latency.drift import FollowedTime
from rollout.worker import RolloutWorker

DEFAULT_KNOBS = Knobs(tier=Tier.MEDIUM, position=1, top_k=6, num_blocks=14)
"""The configuration that runs, at any budget, without a trained controller."""

WORTH_SAYING = 0.02
"""Relative difference between the milliseconds of a device and of a run that is told."""

Say = Callable[[str], object]
"""Called with progress messages."""

Settings = Mapping[str, Any] | None
"""Fields of a configuration that replace those of a controller's run, or the defaults."""


class Decider(Protocol):
    """Runs questions on a frozen model, each with the configuration that it decides on."""

    @property
    def executor(self) -> MolmoEExecutor:
        """The frozen model."""
        ...

    @property
    def source(self) -> str:
        """What decides, in words."""
        ...

    def run(self, sample: Sample, budget_ms: float) -> Mapping[str, Any]:
        """The outcome of one question, as the environment reports it; budget in device ms."""
        ...

    def warm_up(self, picture: Sample, text: Sample) -> None:
        """Runs a question on a large image and one without, so that no later one runs cold."""
        ...

    def follow(self) -> None:
        """Probes how fast the device is now, if that is due and of use."""
        ...


class FixedKnobs:
    """Decides on the same configuration for every question and budget.

    Args:
        executor: the frozen model.
        knobs: the configuration.
        source: why this one, in words.
    """

    def __init__(self, executor: MolmoEExecutor, knobs: Knobs, source: str) -> None:
        self.executor, self.knobs, self.source = executor, knobs, source

    def run(self, sample: Sample, budget_ms: float) -> Mapping[str, Any]:
        """See `Decider.run`."""
        return run_knobs(self.executor, sample, self.knobs, budget_ms)

    def warm_up(self, picture: Sample, text: Sample) -> None:
        """See `Decider.warm_up`."""
        for sample in (picture, text):
            run_knobs(self.executor, sample, self.knobs)

    def follow(self) -> None:
        """Does nothing: the configuration is the same at any speed."""


class TrainedController:
    """A controller decides, by a budget in the milliseconds of its run.

    Args:
        executor: the frozen model.
        controller: the controller, on the model's device.
        present: how fast the device runs, by the calibration of the controller's run.
        source: where the controller comes from, in words.
        say: told when the controller sees another budget than the one that was asked for.
    """

    def __init__(
        self,
        executor: MolmoEExecutor,
        controller: Controller,
        present: PresentTime,
        source: str,
        say: Say,
    ) -> None:
        own = controller.config.budget_range
        arguments = {
            "tasks": AnyAnswer(),
            "budgets": BudgetSampler(range=own, uniform_from_ms=own.low_ms),
            "reward": BudgetReward(),
            "present": present,
            # Whether a missed budget was feasible is of no use here, and would cost another run.
            "cheapest_ms": lambda _session: math.inf,
        }
        self.executor, self.source = executor, source
        self._runner = GroupRunner(executor, controller, arguments)
        self.range, self.present, self._say = own, present, say

    def run(self, sample: Sample, budget_ms: float) -> Mapping[str, Any]:
        """See `Decider.run`."""
        known_ms = known_budget_ms(budget_ms, self.range, self.present, self._say)
        return self._runner.run(sample, known_ms).outcomes[0]

    def warm_up(self, picture: Sample, text: Sample) -> None:
        """See `Decider.warm_up`; runs every tier, because the controller may choose any.

        The device is probed after that, when it is warm.
        """
        for tier in TIERS:
            run_knobs(self.executor, picture, replace(FULL_KNOBS, tier=tier))
        for sample in (picture, text):
            self._runner.run(sample, self.range.high_ms)
        self.follow()

    def follow(self) -> None:
        """See `Decider.follow`."""
        if isinstance(self.present, FollowedTime):
            self.present.follow()


class AnyAnswer:
    """The task of a question without a reference answer: every answer scores 0."""

    def sample(self, split: str, index: int) -> Sample:
        """Never called: there is no data set."""
        raise ValueError("a single question has no data set")

    def score(self, sample: Sample, answer: str) -> float:
        """Always 0."""
        return 0.0


def load_default(worker: Settings, executor: Settings) -> FixedKnobs:
    """Loads the frozen model and decides on `DEFAULT_KNOBS`; raises ValueError if it cannot."""
    found = build_executor(_settled(WorkerConfig(), worker, executor))
    source = f"default configuration {DEFAULT_KNOBS} (no controller given)"
    return FixedKnobs(found, DEFAULT_KNOBS, source)


def load_controller(
    run: str | Path, worker: Settings, executor: Settings, say: Say
) -> TrainedController:
    """Loads a controller and the frozen model that it was trained on.

    Args:
        run: a run folder or the folder of a checkpoint, as a path or URI.
        worker: fields of `WorkerConfig`.
        executor: fields of its `ExecutorConfig`.
        say: see `TrainedController`.

    Raises:
        ValueError: no controller is found, or it was trained on another model.
    """
    folder = find_controller(local_folder(run))
    controller = Controller.load(folder).requires_grad_(False)
    found, present = _device_of_run(folder, worker, executor)
    controller.to(found.model.device)
    return TrainedController(found, controller, present, f"controller {folder}", say)


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


def run_knobs(
    executor: MolmoEExecutor, sample: Sample, knobs: Knobs, budget_ms: float = 1e9
) -> Mapping[str, Any]:
    """Runs one configuration without a controller; the outcome as the environment reports it."""
    group = MolmoEGroupSession(executor, sample, budget_ms)
    group.begin([(knobs.tier, knobs.position)], None)
    (execution,) = group.finish([(knobs.top_k, knobs.num_blocks)])
    assert execution is not None
    outcome = {name: getattr(execution, name) for name in execution.__slots__}
    return {
        **outcome,
        "device_ms": execution.latency_ms,
        "num_prompt_tokens": execution.num_vision_tokens + execution.num_text_tokens,
    }


def _settled(base: WorkerConfig, worker: Settings, executor: Settings) -> WorkerConfig:
    return replace(base, **(worker or {}), executor=replace(base.executor, **(executor or {})))


def _device_of_run(
    folder: Path, worker: Settings, executor: Settings
) -> tuple[MolmoEExecutor, PresentTime]:
    """The frozen model that a controller was trained on, and how fast the device runs it now.

    A controller that was saved outside a run does not tell its model, so any model is accepted, at
    any speed.

    Raises:
        ValueError: it is another model.
    """
    if not (folder / STATE_NAME).is_file():
        return build_executor(_settled(WorkerConfig(), worker, executor)), SteadyTime()
    checkpoint = CheckpointStore(folder.parent).load(folder)
    config = _settled(worker_of(checkpoint), worker, executor)
    found = build_executor(config)
    trained_on = fingerprint_from_state(checkpoint.state)
    if trained_on is not None:
        ours = replace(
            Fingerprint.of(found, AnyAnswer()),
            tasks=trained_on.tasks,
            max_new_tokens=trained_on.max_new_tokens,
            budget_scope=trained_on.budget_scope,
        )
        trained_on.check_same(
            ours,
            f"the controller in {folder}",
            "this model",
            "leave --worker options out to run what it was trained on",
        )
    return found, _present_time(checkpoint, found, config)


def _present_time(
    checkpoint: Checkpoint, executor: MolmoEExecutor, config: WorkerConfig
) -> PresentTime:
    """The speed of this device by a run's calibration; nothing drifts if the run was simulated."""
    calibration = calibration_from_state(checkpoint.state)
    if calibration.clock != executor.clock_name:
        return SteadyTime()
    return RolloutWorker(executor, config.build_tasks()).present_time(calibration)

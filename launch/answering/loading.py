"""Loads a frozen model and the policy that a run trained for it, or the default one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.calibration import PresentTime, SteadyTime
from launch.analysis.knob_table import KnobTable
from launch.answering.policies import DEFAULT_KNOBS, ControllerPolicy, Say, TablePolicy
from launch.run.resume import calibration_from_state, fingerprint_from_state, worker_of
from launch.storage.fetched_run import local_folder
from learner.checkpoint import Checkpoint, CheckpointStore, find_controller
from learner.manifest import STATE_NAME
from policy.controller import Controller
from rollout.build import build_executor
from rollout.executor import MolmoEExecutor
from rollout.fingerprint import Fingerprint
from rollout.worker import RolloutWorker
from rollout.worker_config import EMBEDDED, WorkerConfig

Settings = Mapping[str, Any] | None
"""Fields of a configuration that replace those of a controller's run, or the defaults."""


SHIPPED_CONTROLLER = EMBEDDED / "controller"
"""Trained by the default recipe for the small model, on the machine that its state describes."""


def run_or_shipped(run: str | Path | None, worker: Settings, say: Say) -> str | Path | None:
    """The run that is given; without one the shipped controller, for the small model as it ships.

    None, for a fixed configuration, if there is neither: the shipped controller is right for its
    own model, dtype and kind of device alone.
    """
    if run is not None or worker or not SHIPPED_CONTROLLER.is_dir():
        return run
    say("no run is given: the controller that ships with the small model answers")
    return SHIPPED_CONTROLLER


def load_default(worker: Settings, executor: Settings) -> TablePolicy:
    """Loads the frozen model, to run `DEFAULT_KNOBS`; raises ValueError if it cannot."""
    found = build_executor(_settled(WorkerConfig(), worker, executor))
    source = f"default configuration {DEFAULT_KNOBS} (no controller given)"
    return TablePolicy(found, KnobTable.fixed(DEFAULT_KNOBS), source)


def load_controller(
    run: str | Path, worker: Settings, executor: Settings, say: Say
) -> ControllerPolicy:
    """Loads a controller and the frozen model that it was trained on.

    Args:
        run: a run folder or the folder of a checkpoint, as a path or URI.
        worker: fields of `WorkerConfig`.
        executor: fields of its `ExecutorConfig`.
        say: see `ControllerPolicy`.

    Raises:
        ValueError: no controller is found, or it was trained on another model.
    """
    folder = find_controller(local_folder(run))
    controller = Controller.load(folder).requires_grad_(False)
    found, present = _device_of_run(folder, worker, executor)
    controller.to(found.model.device)
    return ControllerPolicy(found, controller, present, f"controller {folder}", say)


def _settled(base: WorkerConfig, worker: Settings, executor: Settings) -> WorkerConfig:
    return replace(base, **(worker or {}), executor=replace(base.executor, **(executor or {})))


def _device_of_run(
    folder: Path, worker: Settings, executor: Settings
) -> tuple[MolmoEExecutor, PresentTime]:
    """The frozen model that a controller was trained on, and how fast the device runs it now.

    A controller that was saved outside a run does not record its model, so any model is accepted,
    at any speed.

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
            Fingerprint.of(found),
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

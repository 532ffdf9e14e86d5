"""Answers one question within a budget, with a trained controller or a fixed configuration."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from envs.calibration import PresentTime, SteadyTime
from envs.reward import BudgetReward, is_violation
from envs.spec import BudgetRange, BudgetSampler, Knobs, Sample, Tier, check_budget_ms
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


class AnyAnswer:
    """The task of a question without a reference answer: every answer scores 0."""

    def sample(self, split: str, index: int) -> Sample:
        """Never called: there is no data set."""
        raise ValueError("a single question has no data set")

    def score(self, sample: Sample, answer: str) -> float:
        """Always 0."""
        return 0.0


def open_image(path: Path | None) -> Image.Image | None:
    """Opens an image file; raises ValueError naming it if that fails."""
    if path is None:
        return None
    try:
        with warnings.catch_warnings():
            # Large images are scaled down later; only those beyond Pillow's limit are refused.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give an image file") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(
            f"{path} is too large: give an image of at most {limit} million pixels"
        ) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"{path} is not an image that can be read ({error}): give another file"
        ) from None


def answer(
    prompt: str,
    budget_ms: float,
    *,
    image: Path | None = None,
    controller: Path | None = None,
    worker_settings: Mapping[str, Any] | None = None,
    executor_settings: Mapping[str, Any] | None = None,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Answers a question and reports choices and latencies; runs it twice, once to warm up.

    Args:
        prompt: the question, in the style of its task.
        budget_ms: latency budget in ms of this device. A controller sees it in the milliseconds of
            its run, whose calibration samples are run first, to see how fast the device is now.
        image: image file, None for a question without an image.
        controller: a run folder or the folder of a checkpoint; None runs a fixed configuration.
        worker_settings: fields of `WorkerConfig` that replace those of the controller's run, or
            the defaults.
        executor_settings: fields of its `ExecutorConfig`, in the same way.
        say: called with progress messages.

    Returns:
        `answer`, `choices`, `stages_ms`, `latency_ms`, `within_budget` and more, as plain values.

    Raises:
        ValueError: an unusable budget, prompt, image or controller, or a controller trained on
            another model.
    """
    budget_ms = check_budget_ms(budget_ms)
    sample = _question(prompt, image)
    settings = (worker_settings, executor_settings)
    if controller is None:
        executor = build_executor(_settled(WorkerConfig(), *settings))
        run = functools.partial(_default_configuration, executor, sample, budget_ms)
        source = f"default configuration {DEFAULT_KNOBS} (no controller given)"
    else:
        folder = find_controller(controller)
        policy = Controller.load(folder).requires_grad_(False)
        executor, present = _device_of_run(folder, *settings)
        known_ms = _known(budget_ms, policy.config.budget_range, present, say)
        policy.to(executor.model.device)
        run = functools.partial(_with_controller, executor, policy, sample, known_ms, present)
        source = f"controller {folder}"
    say("answering twice, the first time to warm up ...")
    run()
    return _described(run(), source, budget_ms, executor.clock_name)


def _settled(
    base: WorkerConfig, worker: Mapping[str, Any] | None, executor: Mapping[str, Any] | None
) -> WorkerConfig:
    return replace(base, **(worker or {}), executor=replace(base.executor, **(executor or {})))


def _device_of_run(
    folder: Path, worker: Mapping[str, Any] | None, executor: Mapping[str, Any] | None
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
    present = RolloutWorker(executor, config.build_tasks()).present_time(calibration)
    if isinstance(present, FollowedTime):
        present.follow()
    return present


def _question(prompt: str, image: Path | None) -> Sample:
    """The question as a sample; raises ValueError for an unusable prompt or image."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError("the prompt is not valid UTF-8: check the terminal's encoding") from None
    return Sample(
        id=str(image or "question"),
        task="question",
        image=open_image(image),
        prompt=prompt,
        answers=(),
    )


def _known(
    budget_ms: float, own: BudgetRange, present: PresentTime, say: Callable[[str], object]
) -> float:
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


WORTH_SAYING = 0.02
"""Relative difference between the milliseconds of a device and of a run that is told."""


def _described(
    outcome: dict[str, Any], source: str, budget_ms: float, clock: str
) -> dict[str, Any]:
    knobs = outcome["knobs"]
    latency_ms = outcome.get("device_ms", outcome["latency_ms"])
    return {
        "answer": outcome["answer"],
        "choices": {
            "tier": knobs.tier.name.lower(),
            "position": knobs.position,
            "top_k": knobs.top_k,
            "num_blocks": knobs.num_blocks,
        },
        "decided_by": source,
        "stages_ms": {name: round(ms, 3) for name, ms in grouped(outcome["stages_ms"]).items()},
        "host_ms": round(outcome["host_ms"], 3),
        "latency_ms": round(latency_ms, 3),
        "wall_ms": round(outcome["wall_ms"], 3),
        "clock": clock,
        "budget_ms": budget_ms,
        "within_budget": not is_violation(latency_ms, budget_ms).item(),
        "finished": outcome["finished"],
    }


def _default_configuration(
    executor: MolmoEExecutor, sample: Sample, budget_ms: float
) -> dict[str, Any]:
    group = MolmoEGroupSession(executor, sample, budget_ms)
    group.begin([(DEFAULT_KNOBS.tier, DEFAULT_KNOBS.position)], None)
    (execution,) = group.finish([(DEFAULT_KNOBS.top_k, DEFAULT_KNOBS.num_blocks)])
    assert execution is not None
    return {name: getattr(execution, name) for name in execution.__slots__}


def _with_controller(
    executor: MolmoEExecutor,
    controller: Controller,
    sample: Sample,
    budget_ms: float,
    present: PresentTime,
) -> dict[str, Any]:
    own: BudgetRange = controller.config.budget_range
    arguments = {
        "tasks": AnyAnswer(),
        "budgets": BudgetSampler(range=own, uniform_from_ms=own.low_ms),
        "reward": BudgetReward(),
        "present": present,
    }
    with torch.no_grad():
        return GroupRunner(executor, controller, arguments).run(sample, budget_ms).outcomes[0]


def grouped(stages_ms: dict[str, float]) -> dict[str, float]:
    """Stages in the order in which they run, with blocks and decode steps added up."""
    before_text = ("vision_global", "image_feature", "language_feature", "stage1", "vision_crops")
    order = ("copy", *before_text, "projector", "embed", "budget_token", "stage2")
    totals: dict[str, float] = dict.fromkeys((*order, "blocks", "head", "decode"), 0.0)
    for name, elapsed_ms in stages_ms.items():
        kind = {"block": "blocks", "decode": "decode"}.get(name.rpartition("_")[0], name)
        totals[kind] = totals.get(kind, 0.0) + elapsed_ms
    return totals

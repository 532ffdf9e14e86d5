"""Reads a run's state from a checkpoint, and checks that a run can be resumed from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.budgets import BudgetRange, BudgetSampler
from envs.calibration import Calibration
from launch.analysis.settings import flat
from launch.run.recipes import JointGRPOConfig, from_json, to_json
from launch.storage.fetched_run import local_folder
from learner.checkpoint import Checkpoint, CheckpointStore
from rollout.fingerprint import Fingerprint
from rollout.worker_config import WorkerConfig

STATE_KEYS = (
    *("next_step", "seed", "lambda_control", "budgets", "calibration", "fingerprint"),
    "device_ms",
    *("latency_source", "configuration", "git_revision", "packages", "python"),
)
"""Keys of the run's state in every checkpoint."""

FREE_ON_RESUME = (
    *("run_dir", "steps", "epochs", "checkpoint_every", "keep_last", "dry_run", "print_config"),
    "trackers",
    *(
        "warm_start_profile",
        "comparison_profile",
        "simulated_latency",
        "evaluation",
        "cluster",
        "faults",
        "budget.num_samples",
    ),
    *("worker.model", "worker.device", "worker.dtype", "worker.importance"),
    *("worker.importance_by_task", "worker.kept_groups_mib", "worker.loader_threads"),
    *("worker.data.sources", "worker.data.images", "worker.data.own", "worker.data.cache"),
)
"""Settings that may change when a run is resumed: they do not affect the weights, or the
fingerprint covers them."""


def load_checkpoint(run: str | Path) -> Checkpoint:
    """The newest checkpoint of a run, local or not; raises ValueError if there is none."""
    run_dir = local_folder(run)
    if not (run_dir / "checkpoints").is_dir():
        raise ValueError(f"{run_dir} holds no checkpoints: give the run-dir of a training run")
    store = CheckpointStore(run_dir / "checkpoints", required_state=STATE_KEYS)
    checkpoint = store.load_latest()
    if checkpoint is None:
        raise ValueError(f"{run_dir} holds no checkpoint yet: train first")
    return checkpoint


def worker_of(checkpoint: Checkpoint) -> WorkerConfig:
    """The worker configuration of a checkpoint's run: frozen model, tasks and settings."""
    return from_json(checkpoint.state["configuration"]).worker


def budgets_to_state(sampler: BudgetSampler) -> dict[str, Any]:
    """The budget sampler of a run, as plain JSON values."""
    return {
        "low_ms": sampler.range.low_ms,
        "high_ms": sampler.range.high_ms,
        "uniform_from_ms": sampler.uniform_from_ms,
        "share_below": sampler.share_below,
    }


def budgets_from_state(state: dict[str, Any]) -> BudgetSampler:
    """The budget sampler that a checkpoint's run used."""
    saved = state["budgets"]
    return BudgetSampler(
        range=BudgetRange(low_ms=saved["low_ms"], high_ms=saved["high_ms"]),
        uniform_from_ms=saved["uniform_from_ms"],
        share_below=saved["share_below"],
    )


def calibration_from_state(state: dict[str, Any]) -> Calibration:
    """The speed of the devices when a checkpoint's run began."""
    return Calibration.from_json(state["calibration"])


def fingerprint_from_state(state: dict[str, Any]) -> Fingerprint | None:
    """The fingerprint of a checkpoint's run; None for those of some tests."""
    return Fingerprint.from_json(state["fingerprint"]) if state["fingerprint"] else None


def check_resumable(checkpoint: Checkpoint, config: JointGRPOConfig, label: str) -> JointGRPOConfig:
    """The configuration with which a run is resumed.

    Raises:
        ValueError: the run cannot be continued with this configuration; the message names every
            setting that differs, with both values.
    """
    state = checkpoint.state
    source = label or "measured"
    if state["latency_source"] != source:
        raise ValueError(
            f"{checkpoint.path} was trained with latencies from {state['latency_source']}, not "
            f"from {source}: use a new run-dir"
        )
    saved = state["configuration"]
    config = replace(config, groups_per_step=config.groups_per_step or saved["groups_per_step"])
    theirs, ours = flat(saved), flat(to_json(config))
    differing = [
        f"{name} {theirs.get(name)} (now {ours.get(name)})"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name) and not _is_free(name)
    ]
    if differing:
        raise ValueError(
            f"{checkpoint.path} was made with {', '.join(differing)}: resume with the same "
            "settings, or give a new run-dir"
        )
    if state["next_step"] > config.steps and not config.epochs:
        raise ValueError(
            f"{checkpoint.path} has done {state['next_step']} steps and {config.steps} were asked "
            "for: give more steps, or a new run-dir"
        )
    return config


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE_ON_RESUME)

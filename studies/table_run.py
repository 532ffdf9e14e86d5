"""Runs of the training loop in a table world, in this process: no cluster and no model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from launch.run.recipes import EvaluationConfig, JointGRPOConfig
from launch.run.reporting import Reporter
from launch.run.state import Run
from learner.checkpoint import CheckpointStore
from learner.lambda_control import LambdaControl
from learner.local import LocalLearner
from policy.config import PolicySetup
from rollout.simulation.table_fleet import TableFleet
from rollout.simulation.table_samples import budgets_of, calibration_of


def _reporter(run_dir: Path, num_steps: int) -> Reporter:
    reporter = Reporter(run_dir, num_steps=num_steps, clock="table")
    reporter.begin_at(0)
    return reporter


def table_run(run_dir: Path, settings: JointGRPOConfig, fleet: TableFleet) -> Run:
    """A new run that trains and evaluates on the same table."""
    run_dir.mkdir(parents=True, exist_ok=True)
    samples = fleet.splits["train"]
    budgets = budgets_of(samples.table)
    widths = samples.language_feature_SD.shape[1], samples.image_feature_SI.shape[1]
    prices = settings.price
    setup = PolicySetup.of(
        *widths, budgets, calibration_of(samples.table), prices.sampler(), prices.deployed
    )
    torch.manual_seed(settings.seed)
    return Run(
        config=settings,
        setup=setup,
        fleet=fleet,
        learner=LocalLearner(
            fleet.controller_class(setup.controller), settings.learner, settings.seed
        ),
        reporter=_reporter(run_dir, settings.steps),
        store=CheckpointStore(run_dir / "checkpoints", settings.keep_last),
        lambda_control=LambdaControl(settings.pid, budgets),
        calibration=calibration_of(samples.table),
    )


def quiet_settings(base: JointGRPOConfig, **changes: Any) -> JointGRPOConfig:
    """A recipe's settings with few checkpoints and a single evaluation."""
    quiet = {"checkpoint_every": 10**6, "evaluation": EvaluationConfig(every=10**6, num_samples=2)}
    return replace(base, **{**quiet, **changes})

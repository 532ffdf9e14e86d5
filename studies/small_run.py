"""A training run of seconds on the shipped profile, for trying out studies.

Its controller has the widths of the embedded model, so that it can be run with it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from envs.tasks import build_tasks
from launch.joint_grpo import train
from launch.run.recipes import SHIPPED_PROFILE, embedded
from rollout.build import build_executor
from rollout.group_sharing import MolmoEGroupSession
from rollout.profiling.conversion import sample_place
from rollout.profiling.profile_table import ProfileTable
from rollout.simulation.stand_in_blocks import StandInBlocks
from rollout.simulation.table_fleet import TableFleet
from rollout.simulation.table_samples import TableSamples
from rollout.worker_config import WorkerConfig
from studies.table_run import quiet_settings, table_run

NUM_SAMPLES = 16


def small_run(folder: Path) -> Path:
    """Trains one step and writes a checkpoint; returns the run's folder."""
    run_dir, table = folder / "run", ProfileTable.load(SHIPPED_PROFILE).rows(range(NUM_SAMPLES))
    executor, tasks = build_executor(WorkerConfig(device="cpu")), build_tasks()
    features = []
    for name in table.sample_ids:
        session = MolmoEGroupSession(executor, tasks.sample(*sample_place(name)))
        features.append(session.features()[0])
    samples = TableSamples(
        table=table,
        language_feature_SD=np.stack([seen.language for seen in features]),
        image_feature_SI=np.stack([seen.image for seen in features]),
    )
    splits = {"train": samples, "validation": samples}
    fleet = TableFleet(splits, StandInBlocks(samples.language_feature_SD.shape[1]))
    base = replace(embedded(), groups_per_step=2, steps=1)
    train(table_run(run_dir, quiet_settings(base), fleet))
    return run_dir

"""Scores the controllers of several runs on one test profile, in seconds instead of live turns.

    python launch/profile_knobs.py T --split test --num-samples 300
    python -m studies.runs_on_a_profile T/table.npz RUN RUN ...

Choices are made by the controllers from the real model's features and latency tokens; scores and
latencies of the chosen configurations are the profile's, in each run's own milliseconds. The rivals
are chosen on the shipped validation profile. `--quick` scores a run of one step on a few samples of
that profile.

Shapes: K budgets, D d_model, I length of the image feature.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from benchmarks.options import needed, read_options
from envs.spec import POSITIONS, TIERS, Sample
from envs.tasks.registry import build_tasks
from launch.analysis.outcomes import Outcome, outcome, outcome_on
from launch.analysis.rivals import choose_rivals
from launch.cluster.console import one_clear_error
from launch.run.recipes import SHIPPED_PROFILE
from launch.run.resume import (
    budgets_from_state,
    calibration_from_state,
    load_checkpoint,
    worker_of,
)
from learner.checkpoint import Checkpoint
from policy.controller import Controller
from rollout.build import build_executor
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import MolmoEGroupSession
from rollout.profiling.conversion import calibrated, sample_place
from rollout.profiling.profile_table import ProfileTable
from studies.small_run import small_run

NUM_BUDGETS = 8
RIVALS = ("lookup", "lookup by task", "static")
NUM_QUICK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsConfig:
    """One comparison.

    Attributes:
        quick: a run of one step on a few samples of the shipped profile.
        table: file table.npz of a test profile of all configurations.
        runs: folders of training runs.
    """

    quick: bool = False
    table: Annotated[Path | None, tyro.conf.Positional] = None
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()


QUICK = RunsConfig(quick=True)


def greedy_choices(
    executor: MolmoEExecutor, controller: Controller, sample: Sample, budgets_ms: np.ndarray
) -> np.ndarray:
    """The most likely choices at each budget, [K, 4]."""
    sees_image = controller.config.sees_image
    group = MolmoEGroupSession(executor, sample, sees_image=sees_image)
    features, _ = group.features()
    group.begin([(tier, max(POSITIONS)) for tier in TIERS], None)
    token_KD = controller.budget_tokens(torch.from_numpy(budgets_ms))
    count = len(budgets_ms)
    stage1 = controller.stage1_logits(
        torch.from_numpy(features.language).expand(count, -1),
        token_KD,
        torch.from_numpy(features.image).expand(count, -1) if sees_image else None,
    )
    tier_K, position_K = (logits.argmax(-1) for logits in stage1)
    tokens = [executor.latency_tokens(group.prefixes[tier], token_KD.numpy()) for tier in TIERS]
    chosen_KD = np.stack(tokens)[tier_K, np.arange(count), position_K]
    stage2 = controller.stage2_logits(torch.from_numpy(chosen_KD), position_K)
    return torch.stack([tier_K, position_K, *(logits.argmax(-1) for logits in stage2)], -1).numpy()


@torch.no_grad()
def scored(checkpoint: Checkpoint, test: ProfileTable) -> tuple[Outcome, dict[str, Outcome]]:
    """The controller's outcome on a profile, and its rivals'."""
    calibration = calibration_from_state(checkpoint.state)
    budgets_ms = budgets_from_state(checkpoint.state).evenly(NUM_BUDGETS)
    executor, tasks = build_executor(worker_of(checkpoint)), build_tasks()
    table = calibrated(test, calibration)
    column = {knobs.indices(): c for c, knobs in enumerate(table.configurations)}
    samples = [tasks.sample(*sample_place(name)) for name in table.sample_ids]
    choices_SK4 = [greedy_choices(executor, checkpoint.controller, s, budgets_ms) for s in samples]
    columns_SK = np.array([[column[tuple(a)] for a in row.tolist()] for row in choices_SK4])
    own = outcome(
        np.take_along_axis(table.scores, columns_SK, 1),
        np.take_along_axis(table.latencies_ms, columns_SK, 1),
        budgets_ms,
        table.feasible(budgets_ms),
    )
    validation = calibrated(ProfileTable.load(SHIPPED_PROFILE), calibration)
    found = choose_rivals(validation, budgets_ms)
    return own, {name: outcome_on(table, found[name], budgets_ms) for name in RIVALS}


def main() -> int:
    """Scores the runs, and prints each next to its rivals."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(1)
    if options.quick and options.table is None:
        with tempfile.TemporaryDirectory() as folder:
            test = ProfileTable.load(SHIPPED_PROFILE).rows(range(NUM_QUICK))
            compare(options.runs or (small_run(Path(folder)),), test)
        return 0
    table = needed(options.table, "TABLE, the table.npz of a test profile,")
    if not options.runs:
        raise ValueError("RUNS are needed: name the folders of one or more training runs")
    compare(options.runs, ProfileTable.load(table))
    return 0


def compare(runs: tuple[Path, ...], test: ProfileTable) -> None:
    """Prints one row per run, and one per rival."""
    for run in runs:
        own, others = scored(load_checkpoint(run), test)
        worst = np.nanmax(own.violation)
        print(
            f"{run}: in budget {own.accuracy:.3f}, violations {own.violation_rate:.1%}, at the "
            f"worst budget {worst:.0%}"
        )
        for name, other in others.items():
            print(f"  {name:<15}{other.accuracy:.3f}  lead {own.ahead_of(other)}")


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

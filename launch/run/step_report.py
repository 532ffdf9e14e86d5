"""What is recorded of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.reward import Reward
from launch.run.state import Run
from learner.scalars import rollout_scalars, speed_scalars, stage_scalars, update_scalars
from learner.update import UpdateRecord
from rollout.fleet import FleetStats
from rollout.group_rollout import GroupRollout

HISTOGRAMS_EVERY = 10
"""Steps between two sets of histograms."""


def report_step(
    run: Run, step: int, groups: Sequence[GroupRollout], reward: Reward, update: UpdateRecord
) -> None:
    """Writes the scalars, histograms and progress line of a step."""
    stats, times = run.fleet.stats, run.watch.take()
    num_episodes = sum(g.group_size for g in groups)
    scalars = {
        **update_scalars(update, reward),
        **run.lambda_control.scalars(),
        **rollout_scalars(groups, run.setup.budgets, run.calibration.full_ms),
        **stage_scalars(groups),
        **speed_scalars(groups),
        **times,
        "time/episodes_per_s": num_episodes / max(times["time/step_s"], 1e-9),
        **fleet_scalars(stats, times["time/step_s"]),
    }
    run.reporter.scalars(step, scalars)
    run.on_step(step, groups, scalars)
    run.reporter.progress(step, scalars, stats.slowest)
    if step % HISTOGRAMS_EVERY == 0:
        run.reporter.choices(step, groups)
        run.reporter.distributions(step, "reward/episodes", reward.total.ravel())


def fleet_scalars(stats: FleetStats, step_s: float) -> dict[str, float]:
    """Counts of the fleet, and how busy its actors were in a step of `step_s` seconds."""
    busy = list(stats.busy_share.values())
    return {
        "fleet/actors": float(len(busy)),
        "time/rollout_s": float(np.mean(busy)) * step_s if busy else 0.0,
        **{f"fleet/{name}": float(count) for name, count in stats.counts().items()},
        **{f"fleet_busy/{name}": share for name, share in stats.busy_share.items()},
        **{f"fleet_waiting/{name}": share for name, share in stats.waiting_share.items()},
    }

"""How often training misjudges whether a budget is feasible.

    python -m studies.feasibility RUN_DIR --num-groups 400

In training a budget counts as feasible for a sample if any member of the group met it, or else if
one run of the cheapest configuration does. Here the cheapest configuration runs several times more
on every sample, and the median of these runs counts as the truth. Groups are drawn as in training,
by the run's controller and by an untrained one. `--quick` makes a run of one step for it.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from benchmarks.options import needed, read_options
from launch.cluster.console import one_clear_error
from launch.run.resume import (
    budgets_from_state,
    calibration_from_state,
    load_checkpoint,
    worker_of,
)
from policy.config import PolicySetup
from policy.controller import Controller
from policy.weights import PolicyWeights, weights_sha256
from rollout.build import build_worker
from rollout.group_rollout import GroupRollout
from rollout.requests import GroupRequest
from studies.small_run import small_run

REPEATS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class FeasibilityConfig:
    """One measurement.

    Attributes:
        quick: few groups, of a run of one step.
        run_dir: folder of a training run.
        num_groups: number of groups by each controller.
        group_size: number of members of a group.
    """

    quick: bool = False
    run_dir: Annotated[Path | None, tyro.conf.Positional] = None
    num_groups: int = 400
    group_size: int = 4


QUICK = FeasibilityConfig(quick=True, num_groups=2, group_size=2)


def main() -> int:
    """Measures, and prints one row per controller."""
    config = read_options(QUICK, __doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if config.quick and config.run_dir is None:
            measure(config, small_run(Path(folder)))
        else:
            measure(config, needed(config.run_dir, "RUN_DIR, the folder of a training run,"))
    return 0


def measure(config: FeasibilityConfig, run_dir: Path) -> None:
    """Prints how many groups of the trained and of an untrained controller are misjudged."""
    checkpoint = load_checkpoint(run_dir)
    calibration = calibration_from_state(checkpoint.state)
    setup = PolicySetup(
        controller=checkpoint.controller.config,
        budgets=budgets_from_state(checkpoint.state),
        calibration=calibration,
    )
    worker = build_worker(worker_of(checkpoint))
    worker.warm_up()
    torch.manual_seed(0)
    untrained = Controller(setup.controller)
    for version, (name, controller) in enumerate(
        {"trained": checkpoint.controller, "untrained": untrained}.items()
    ):
        arrays = controller.to_numpy()
        worker.install(
            setup, PolicyWeights(version=version, sha256=weights_sha256(arrays), arrays=arrays)
        )
        rng = np.random.default_rng(0)
        inferred, truth, distance = [], [], []
        for number in range(config.num_groups):
            group = worker.rollout(
                GroupRequest(
                    group_id=number,
                    run_seed=0,
                    step=0,
                    split="validation",
                    index=number,
                    budget_ms=setup.budgets.draw(rng),
                    group_size=config.group_size,
                )
            )
            assert isinstance(group, GroupRollout)
            runs = worker.cheapest_ms("validation", group.index, REPEATS, calibration)
            cheapest_ms = float(np.median(runs))
            inferred.append(group.feasible)
            truth.append(cheapest_ms <= group.budget_ms)
            distance.append(abs(np.log(cheapest_ms / group.budget_ms)))
        wrong = np.array(inferred) != np.array(truth)
        away = f"{np.median(np.array(distance)[wrong]):.1%}" if wrong.any() else "none"
        print(
            f"{name}: {wrong.sum()} of {len(wrong)} groups misjudged ({wrong.mean():.1%}), "
            f"{(wrong & np.array(inferred)).sum()} of them as feasible; infeasible by truth "
            f"{1 - np.mean(truth):.1%}; median distance of the misjudged from the border {away}"
        )


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

"""Rebuilds the small model that ships with the project, from nothing, on CPUs.

    python launch/pretrain_tiny.py --out /data/tiny --num-workers 2

There are four stages: the vision encoder on sheets of glyphs, the decoder on text alone, everything
on the training splits of the tasks, then mostly the experts; always at full depth with eight
experts. A killed run continues from its last checkpoint when started again with the same --out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from envs.checks import check_within
from launch.cluster.console import check_first, check_local_paths
from launch.cluster.usage import options_from
from launch.pretraining.config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingOptions:
    """Options of this program."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    num_workers: int = 2
    """Ray Train workers, one CPU each; they must see the folder --out. 0 trains in this process."""
    num_samples: int = 200
    """Held-out samples of each task to evaluate on at the end."""

    def __post_init__(self) -> None:
        check_within(self, "num_workers", low=0)
        check_within(self, "num_samples", low=1)


def command_line() -> PretrainingOptions:
    """Reads the command line."""
    config = options_from(
        lambda: tyro.cli(PretrainingOptions, prog="pretrain_tiny.py", description=__doc__)
    )
    check_local_paths(config)
    return config


if __name__ == "__main__":
    check_first(command_line)  # before the imports that take seconds

from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from rich.table import Table

from envs.tasks import WEIGHTS
from launch.analysis.statistics import Interval
from launch.cluster.console import one_clear_error, wide_console
from launch.cluster.ray_train import start_ray
from launch.pretraining.blueprint import write_folder
from launch.pretraining.held_out import Evaluator, held_out
from launch.pretraining.stages import Pretraining
from launch.storage.outputs import writable_folder

MAX_FAILURES = 3


def train_worker(arguments: dict[str, Any]) -> None:
    """Ray Train's loop; a restarted worker finds the last checkpoint in the folder `out`."""
    context = ray.train.get_context()
    config: TrainConfig = arguments["config"]
    pretraining = Pretraining(config, rank=context.get_world_rank())
    pretraining.run()
    ray.train.report({"stage": pretraining.stage})


def train_on_ray(config: TrainConfig, num_workers: int) -> None:
    """Trains on Ray Train's workers; a worker's death costs the steps since its checkpoint."""
    start_ray(num_workers, use_gpu=False)
    TorchTrainer(
        train_worker,
        train_loop_config={"config": config},
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            name="pretrain_tiny",
            storage_path=str(config.out / "ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    ).fit()


def report(pretraining: Pretraining, num_samples: int) -> None:
    """Prints accuracy by task of validation and test, with 95 % intervals."""
    title = f"accuracy on {num_samples} samples per task, with 95 % intervals"
    table = Table("task", "weight", "validation", "test", title=title)
    cells: dict[str, list[str]] = {name: [] for name in (*WEIGHTS, "mixture")}
    for split in ("validation", "test"):
        evaluator = Evaluator(pretraining.trainee, held_out(split, num_samples))
        scores = evaluator.by_task(evaluator.scores())
        by_task = {name: Interval.of(values) for name, values in scores.items()}
        mixture = Interval(
            sum(share * by_task[name].mean for name, share in WEIGHTS.items()),
            sum((share * by_task[name].half_width) ** 2 for name, share in WEIGHTS.items()) ** 0.5,
        )
        for name, column in cells.items():
            column.append(str(by_task.get(name, mixture)))
    for name, columns in cells.items():
        table.add_row(name, f"{WEIGHTS.get(name, 1.0):.2f}", *columns)
    wide_console().print(table)


def main() -> int:
    """Trains, or continues, then evaluates and writes the model's folder."""
    options = command_line()
    config = options.train
    if not config.out.is_absolute():
        raise ValueError(f"--out {config.out} is relative: workers need an absolute folder")
    writable_folder(config.out, "--out")
    Pretraining(config, writes_curves=False)  # a damaged checkpoint is named before workers start
    if options.num_workers:
        train_on_ray(config, options.num_workers)
    else:
        Pretraining(config).run()
    pretraining = Pretraining(config, writes_curves=False)
    write_folder(pretraining.trainee.model, config.out / "model")
    torch.set_num_threads(config.threads)
    report(pretraining, options.num_samples)
    print(f"written to {config.out / 'model'}")
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

"""Fits the standalone latency estimator to profiles, and writes it with metrics and plots.

    python launch/fit_latency_estimator.py --results_dir OUT/results --output_dir estimator

`--results_dir` is the folder `results` of a profile from launch/profile_knobs.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from envs.checks import check_within
from launch.cluster.console import check_first, check_local_paths
from launch.cluster.usage import options_from
from rollout.profiling.records import DecodeReading


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorOptions:
    """Options of this program.

    Attributes:
        results_dir: profiles: one folder per data set, one JSON file per configuration.
        output_dir: folder for the estimator, metrics.json, plots and TensorBoard curves.
        repeats_dir: a second profile of some of the same samples, to measure the clock's noise.
        dataset_names: names of the data sets to use; by default all.
        use_all_datasets: states the default explicitly.
        batch_size: records per step, over all workers.
        num_epochs: passes over the training records.
        lr: Adam's initial learning rate; it falls to a hundredth along a cosine.
        device: cpu or cuda.
        seed: seed of the split, the initial weights and the order of records.
        num_workers: Ray Train workers; 0 trains in this process, without Ray.
        decode_reading: recorded takes a record's own T_decode_per_token (computed only where it is
            absent), computed always T_LLM_decode / output_tokens.
        hidden_dim: width of the estimator.
        num_layers: depth of its encoder: 2 make 69K parameters, 3 make 135K.
    """

    results_dir: Path
    output_dir: Path
    repeats_dir: Path | None = None
    dataset_names: tuple[str, ...] = ()
    use_all_datasets: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    batch_size: int = 64
    num_epochs: int = 50
    lr: float = 1e-3
    device: str = "cpu"
    seed: int = 3407
    num_workers: int = 1
    decode_reading: DecodeReading = DecodeReading.RECORDED
    hidden_dim: int = 256
    num_layers: int = 3

    def __post_init__(self) -> None:
        if self.use_all_datasets and self.dataset_names:
            raise ValueError("--use_all_datasets contradicts --dataset_names: give one of them")
        check_within(self, "num_workers", "seed", low=0)
        check_within(self, "batch_size", "num_epochs", "hidden_dim", "num_layers", low=1)
        check_within(self, "lr", low=0, above=True)

    def fit_config(self) -> FitConfig:
        """The options that determine the fit."""
        return FitConfig(
            batch_size=self.batch_size,
            num_epochs=self.num_epochs,
            lr=self.lr,
            hidden_dim=self.hidden_dim,
            num_layers=self.num_layers,
            seed=self.seed,
            device=self.device,
        )


def command_line() -> EstimatorOptions:
    """Reads the command line."""
    config = options_from(
        lambda: tyro.cli(
            EstimatorOptions,
            prog="fit_latency_estimator.py",
            description=__doc__,
            config=(tyro.conf.EnumChoicesFromValues,),
            use_underscores=True,
        )
    )
    check_local_paths(config)
    return config


if __name__ == "__main__":
    check_first(command_line)  # before the imports that take seconds

import json
import os
import tempfile
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch.utils.tensorboard import SummaryWriter

from launch.analysis.latency_plots import plot_errors, plot_predictions
from launch.cluster.console import one_clear_error
from launch.cluster.ray_train import start_ray
from launch.storage.outputs import writable_folder
from rollout.estimator.estimator import LatencyEstimator
from rollout.estimator.fit import EpochRecord, EstimatorFit, FitConfig
from rollout.estimator.latency_table import LatencyTable, split_by_sample
from rollout.estimator.metrics import (
    LatencyMetrics,
    evaluate_estimator,
    metrics_by_group,
    predict_table,
)
from rollout.estimator.noise import NoiseFloor, noise_floor
from rollout.profiling.records import ProfileReader

ESTIMATOR_NAME = "latency_estimator.safetensors"
METRICS_NAME = "metrics.json"
STATE_NAME = "fit.pt"
NUM_CHECKPOINTS = 5
MAX_FAILURES = 2


def check_device(options: EstimatorOptions) -> None:
    """Raises ValueError if this process is to use a GPU that is not there."""
    is_here = options.device.startswith("cuda") and options.num_workers == 0
    if is_here and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: no CUDA device here; use --device cpu")


def make_repeatable() -> None:
    """One thread and deterministic kernels: the same sums on every number of cores.

    The matrices are so small that more threads are hardly faster.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def fit_in_process(
    train: LatencyTable, val: LatencyTable, config: FitConfig
) -> tuple[LatencyEstimator, list[EpochRecord]]:
    """Trains here, without Ray."""
    fit = EstimatorFit(train, val, config)
    history = []
    for _ in range(config.num_epochs):
        history.append(fit.run_epoch())
        print(history[-1], flush=True)
    return fit.estimator, history


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """The input of every Ray Train worker; the tables are passed by reference."""

    train: ray.ObjectRef[LatencyTable]
    val: ray.ObjectRef[LatencyTable]
    config: FitConfig


def train_worker(arguments: dict[str, Any]) -> None:
    """The loop of a Ray Train worker: resumes from and reports checkpoints."""
    make_repeatable()
    task: WorkerTask = arguments["task"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = str(get_device())
    fit = EstimatorFit(
        *ray.get([task.train, task.val], timeout=120),
        config=FitConfig(**{**asdict(task.config), "device": device}),
        rank=rank,
        world_size=world_size,
        wrap=prepare_model if world_size > 1 else None,
    )
    history: list[EpochRecord] = []
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / STATE_NAME, map_location=device, weights_only=False)
        fit.load_state_dict(state["fit"])
        history = state["history"]
    interval = -(-task.config.num_epochs // NUM_CHECKPOINTS)
    while fit.epoch < task.config.num_epochs:
        history.append(fit.run_epoch())
        if rank == 0:
            print(history[-1], flush=True)
        if fit.epoch % interval == 0 or fit.epoch == task.config.num_epochs:
            report(fit, history, rank)


def report(fit: EstimatorFit, history: list[EpochRecord], rank: int) -> None:
    """Hands metrics and, from the first worker, a checkpoint to Ray Train."""
    metrics = asdict(history[-1].val)
    if rank > 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"fit": fit.state_dict(), "history": history}, Path(folder) / STATE_NAME)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def fit_on_ray(
    train: LatencyTable, val: LatencyTable, config: FitConfig, num_workers: int, output_dir: Path
) -> tuple[LatencyEstimator, list[EpochRecord]]:
    """Trains on Ray Train's workers; a worker's death costs the epochs since its checkpoint.

    Checkpoints pass through a temporary folder in `output_dir`, which all nodes must share.
    """
    use_gpu = config.device.startswith("cuda")
    start_ray(num_workers, use_gpu)
    task = WorkerTask(train=ray.put(train), val=ray.put(val), config=config)
    with tempfile.TemporaryDirectory(prefix=".ray_train_", dir=output_dir) as storage:
        result = TorchTrainer(
            train_worker,
            train_loop_config={"task": task},
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name="latency_estimator",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        ).fit()
        assert result.checkpoint is not None, "train_worker reports one with its last epoch"
        with result.checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / STATE_NAME, map_location="cpu", weights_only=False)
    estimator = LatencyEstimator(config.hidden_dim, config.num_layers)
    estimator.load_state_dict(state["fit"]["estimator"])
    return estimator, state["history"]


def measured_noise(options: EstimatorOptions, dataset_names: list[str]) -> NoiseFloor | None:
    """The noise floor between the profile and its repeats, None without repeats."""
    if options.repeats_dir is None:
        return None
    repeats = ProfileReader(options.repeats_dir)
    return noise_floor(
        ProfileReader(options.results_dir, dataset_names), repeats, options.decode_reading
    )


def describe(estimator: LatencyEstimator, val: LatencyTable) -> dict[str, Any]:
    """The validation metrics: over all records, by configuration, tier and data set."""
    predicted, measured = predict_table(estimator, val), val.targets_ms_N2
    configurations = val.configurations()
    labels = {
        "by_configuration": configurations,
        "by_tier": [name.split("-")[0] for name in configurations],
        "by_dataset": [val.datasets[number] for number in val.dataset_N],
    }
    groups = {name: metrics_by_group(predicted, measured, of) for name, of in labels.items()}
    return asdict(LatencyMetrics.of(predicted, measured)) | groups


def write_curves(folder: Path, history: list[EpochRecord]) -> None:
    """TensorBoard curves of losses, learning rate and validation errors."""
    with SummaryWriter(str(folder)) as writer:
        for record in history:
            writer.add_scalar("train/loss_prefill", record.loss_prefill, record.epoch)
            writer.add_scalar("train/loss_decode", record.loss_decode, record.epoch)
            writer.add_scalar("train/lr", record.lr, record.epoch)
            for name, value in asdict(record.val).items():
                if value is not None:
                    writer.add_scalar(f"val/{name}", value, record.epoch)


def fit_estimator(options: EstimatorOptions) -> dict[str, Any]:
    """Reads, splits, trains, evaluates and writes; returns the content of metrics.json."""
    make_repeatable()
    output_dir = writable_folder(options.output_dir.absolute(), "--output_dir")
    reader = ProfileReader(options.results_dir, options.dataset_names or None)
    try:
        table = LatencyTable.of(reader, options.decode_reading)
    finally:
        print(reader.report, flush=True)
    config = options.fit_config()
    train, val = split_by_sample(table, train_share=0.8, seed=options.seed)
    floor = measured_noise(options, reader.dataset_names)
    if options.num_workers:
        fitted = fit_on_ray(train, val, config, options.num_workers, output_dir)
    else:
        fitted = fit_in_process(train, val, config)
    estimator, history = fitted[0].cpu(), fitted[1]
    metrics = {
        "val": describe(estimator, val),
        "train": asdict(evaluate_estimator(estimator, train)),
        "num_parameters": estimator.num_parameters,
        "decode_reading": options.decode_reading.value,
        "data": {"datasets": reader.dataset_names, **reader.report.to_json()},
        "options": {name: value for name, value in asdict(config).items() if name != "device"},
    }
    if floor is not None:
        metrics["noise_floor"] = asdict(floor)
        for name in ("mae_prefill_ms", "mae_decode_per_token_ms"):
            ratio = metrics["val"][name] / asdict(floor)[name]
            print(f"validation {name}: {ratio:.2f} times the clock's noise floor", flush=True)
    estimator.save(output_dir / ESTIMATOR_NAME)
    (output_dir / METRICS_NAME).write_text(json.dumps(metrics, indent=2) + "\n")
    write_curves(output_dir / "tensorboard", history)
    plot_predictions(output_dir / "predictions.png", val, predict_table(estimator, val))
    plot_errors(output_dir / "errors.png", metrics["val"]["by_configuration"])
    print(f"{estimator.num_parameters} parameters, written to {output_dir}")
    return metrics


def main() -> int:
    """Reads the command line and fits."""
    options = command_line()
    check_device(options)
    fit_estimator(options)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

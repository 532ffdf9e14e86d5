"""Builds a rollout worker from a configuration that can be sent to another process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from envs.budgets import BudgetSampler
from envs.checks import check_weights, check_within
from envs.latency_budget import LatencyBudgetEnv
from envs.prices import PriceSampler
from envs.reward import BudgetReward
from envs.tasks import WEIGHTS, Mixture
from envs.tasks.registry import build_tasks
from envs.tasks.vqa.config import DataConfig
from policy.config import ControllerConfig
from policy.controller import Controller
from rollout.block_skipping import BlockImportance
from rollout.executor import MolmoEExecutor
from rollout.executor_config import ExecutorConfig, check_knobs_fit
from rollout.group_sharing import GroupExecutor
from rollout.latency.simulated import SimulatedLatency
from rollout.molmoe import PREPROCESSORS, MolmoE, MolmoEConfig, Preprocessor
from rollout.molmoe.checkpoint import load_model
from rollout.molmoe.config import resolve_config, resolve_folder
from rollout.worker import KEPT_GROUPS_MIB, RolloutWorker

EMBEDDED = Path(__file__).parent / "embedded"
"""The small MolmoE that ships with the project."""

MAX_THREADS = 1024
"""More threads than any machine has cores; PyTorch aborts on far larger numbers."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Which frozen model answers which tasks, and how.

    Attributes:
        model: `embedded`, a folder, or a hub id such as allenai/MolmoE-1B-0924.
        dtype: dtype of the weights: bfloat16, float32 (CPU only), or auto (bfloat16 on CUDA,
            float32 on the CPU).
        device: cpu, cuda, or auto (cuda if there is a GPU).
        num_threads: number of threads of a worker on the CPU.
        tasks: names of the tasks in the mixture: embedded ones, public data sets, or both.
        weights: weights of tasks in the mixture that replace the default ones, by name.
        data: where public data sets are, and how they are prompted and scored.
        tiling: how images are cut: `letterbox`, as the published code does, or `fill`, which covers
            the crops, with up to 15 of them, as the study that first measured these knobs did.
        importance: JSON file of block importance scores; by default importance_scores.json in the
            model's folder, or else the scores that ship for a published model.
        importance_by_task: JSON files of block importance scores for single tasks, by task name;
            `importance` is used for all others.
        kept_groups_mib: memory in MiB for the prefixes of groups that wait for their gradient; a
            group that does not fit is prefilled again.
        loader_threads: number of threads of a worker that load, decode, cut and tokenise the next
            samples while the device computes; 0 loads each sample when its group begins.
        executor: answer length, budget scope, repeated measurements.
    """

    model: str = "embedded"
    dtype: str = "auto"
    device: str = "auto"
    num_threads: int = 1
    tasks: tuple[str, ...] = tuple(WEIGHTS)
    weights: dict[str, float] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    tiling: Literal["letterbox", "fill"] = "letterbox"
    importance: Path | None = None
    importance_by_task: dict[str, Path] = field(default_factory=dict)
    kept_groups_mib: int = KEPT_GROUPS_MIB
    loader_threads: int = 0
    executor: ExecutorConfig = field(default_factory=lambda: ExecutorConfig(max_new_tokens=16))

    def __post_init__(self) -> None:
        check_within(self, "num_threads", low=1, high=MAX_THREADS)
        check_within(self, "loader_threads", low=0, high=MAX_THREADS)
        check_within(self, "kept_groups_mib", low=0)
        if self.weights:
            check_weights("weights", self.weights.values())

    def build_tasks(self) -> Mixture:
        """The mixture of tasks; raises DataError for one that is unknown or cannot be opened."""
        return build_tasks(self.tasks, self.weights, self.data)


def torch_device(name: str) -> torch.device:
    """The device of this name; raises ValueError for an unknown or absent one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: use cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was requested and none is visible: use cpu or auto")
    return torch.device(name)


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the weights on a device.

    Raises:
        ValueError: the name is unknown, or float32 on CUDA: its grouped matrix product has only a
            slow path there, which synchronises with the host in every block.
    """
    is_cuda = device.type == "cuda"
    if name == "auto":
        return torch.bfloat16 if is_cuda else torch.float32
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}: use auto, {' or '.join(DTYPES)}")
    if name == "float32" and is_cuda:
        raise ValueError("dtype float32 is not supported on CUDA: use bfloat16 or auto")
    return DTYPES[name]


def model_source(config: WorkerConfig) -> str | Path:
    """Folder or hub id of the frozen model."""
    return EMBEDDED if config.model == "embedded" else config.model


def load_frozen_model(config: WorkerConfig) -> tuple[MolmoE, Preprocessor]:
    """Loads the frozen model; raises ValueError naming what is missing or wrong."""
    device = torch_device(config.device)
    dtype = torch_dtype(config.dtype, device)
    if device.type == "cpu":
        torch.set_num_threads(config.num_threads)
    folder = resolve_folder(model_source(config))
    model = load_model(folder, dtype=dtype, device=device)
    return model, PREPROCESSORS[config.tiling].from_pretrained(folder)


def block_importance(
    config: WorkerConfig, model_config: MolmoEConfig
) -> tuple[BlockImportance, dict[str, BlockImportance]]:
    """Block importance scores for all samples, and for single tasks.

    Raises:
        ValueError: there are none for the model, or a task is not in the mixture.
    """
    unknown = sorted(set(config.importance_by_task) - set(config.tasks))
    if unknown:
        raise ValueError(
            f"importance_by_task names {', '.join(unknown)}, and the tasks are "
            f"{', '.join(config.tasks)}: use these names"
        )
    if config.importance is None:
        scores = BlockImportance.of_model(model_config, resolve_folder(model_source(config)))
    else:
        scores = BlockImportance.from_file(config.importance, model_config.n_layers)
    by_task = {
        task: BlockImportance.from_file(path, model_config.n_layers)
        for task, path in config.importance_by_task.items()
    }
    return scores, by_task


def build_executor(
    config: WorkerConfig, simulated: SimulatedLatency | None = None
) -> MolmoEExecutor:
    """Builds the executor; raises ValueError naming what is missing or wrong.

    All checks run before the weights are loaded.
    """
    torch_dtype(config.dtype, torch_device(config.device))
    model_config = resolve_config(model_source(config))
    check_knobs_fit(model_config)
    scores, by_task = block_importance(config, model_config)
    model, preprocessor = load_frozen_model(config)
    return MolmoEExecutor(model, preprocessor, scores, config.executor, simulated, by_task)


def build_worker(
    config: WorkerConfig, name: str = "local", simulated: SimulatedLatency | None = None
) -> RolloutWorker:
    """Builds a worker, loaded but not warmed up.

    `simulated` replaces measured latencies by a table, for tests and dry runs only.
    """
    tasks = config.build_tasks()
    executor = build_executor(config, simulated)
    return RolloutWorker(executor, tasks, name, config.kept_groups_mib, config.loader_threads)


def measure_extremes(worker: RolloutWorker, num_samples: int = 24) -> np.ndarray:
    """Latencies in ms of the cheapest and the full configuration on this device: [N, 2]."""
    worker.warm_up()
    return np.array([worker.extreme_latencies("train", index) for index in range(num_samples)])


def make_env(
    model: str = "embedded",
    tasks: tuple[str, ...] = tuple(WEIGHTS),
    *,
    budgets: BudgetSampler | None = None,
    prices: PriceSampler | None = None,
    **arguments: Any,
) -> LatencyBudgetEnv:
    """The Gymnasium environment, on the embedded model by default.

    Args:
        model: `embedded`, a folder or a hub id.
        tasks: names of the tasks in the mixture.
        budgets: sampler of budgets; by default measured on this device.
        prices: sampler of prices of time, for which the full latency is measured on this device;
            without one, time within the budget is free.
        arguments: further fields of `WorkerConfig` (dtype, device, ...).

    Returns:
        An environment whose budget tokens come from an untrained budget encoder.
    """
    worker = build_worker(WorkerConfig(model=model, tasks=tasks, **arguments))
    full_ms = None
    if budgets is None or prices is not None:
        cheapest_N, full_N = measure_extremes(worker).T
        budgets = budgets or BudgetSampler.from_latencies(cheapest_N, full_N)
        full_ms = float(np.median(full_N))
    torch.manual_seed(0)
    executor = worker.executor
    widths = executor.d_model, executor.image_dim
    controller = Controller(ControllerConfig.for_budgets(*widths, budgets, prices))

    @torch.inference_mode()
    def encode_budget(budget_ms: float, price: float):
        return controller.budget_tokens(torch.tensor([budget_ms]), torch.tensor([price]))[0].numpy()

    return LatencyBudgetEnv(
        executor=GroupExecutor(executor),
        tasks=worker.tasks,
        budgets=budgets,
        reward=BudgetReward(full_ms=full_ms),
        encode_budget=encode_budget,
        prices=prices,
    )

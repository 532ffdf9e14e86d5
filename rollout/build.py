"""Builds a rollout worker from a configuration that can be sent to another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.budgets import BudgetSampler
from envs.checks import did_you_mean
from envs.latency_budget import LatencyBudgetEnv
from envs.prices import PriceSampler
from envs.reward import BudgetReward
from envs.tasks import WEIGHTS
from policy.config import ControllerConfig
from policy.controller import Controller
from rollout.block_skipping import BlockImportance
from rollout.executor import MolmoEExecutor, check_knobs_fit
from rollout.group_sharing import GroupExecutor
from rollout.latency.simulated import SimulatedLatency
from rollout.molmoe import PREPROCESSORS, MolmoE, MolmoEConfig, Preprocessor
from rollout.molmoe.checkpoint import load_model
from rollout.molmoe.config import resolve_config, resolve_folder
from rollout.worker import RolloutWorker
from rollout.worker_config import EMBEDDED, WorkerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
            f"{did_you_mean(unknown[0], config.tasks)}"
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

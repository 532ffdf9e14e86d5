"""Puts a rollout worker together from a description that travels between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from envs.checks import check_within
from envs.latency_budget import LatencyBudgetEnv, TaskSource
from envs.reward import BudgetReward
from envs.spec import BudgetSampler
from envs.tasks import WEIGHTS, Mixture, load_tasks
from policy.controller import Controller, ControllerConfig
from rollout.executor import ExecutorConfig, MolmoEExecutor
from rollout.importance import BlockImportance
from rollout.latency.simulated import SimulatedLatency
from rollout.molmoe import MolmoE, Preprocessor
from rollout.molmoe.config import resolve_folder
from rollout.worker import RolloutWorker

EMBEDDED = Path(__file__).parent / "embedded"
"""The small MolmoE that ships with the project."""

MAX_THREADS = 1024
"""More than any machine has cores for; PyTorch would abort on far more."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Which frozen model answers which tasks, and how.

    Attributes:
        model: `embedded`, a folder, or a hub id such as allenai/MolmoE-1B-0924.
        dtype: float32 or bfloat16.
        device: cpu, cuda, or auto (cuda where there is one).
        num_threads: threads of a CPU worker.
        tasks: names of the tasks in the mixture.
        importance: JSON file of block scores; the model folder's importance_scores.json by
            default.
        executor: answer length, budget scope, repeats.
    """

    model: str = "embedded"
    dtype: str = "float32"
    device: str = "auto"
    num_threads: int = 1
    tasks: tuple[str, ...] = tuple(WEIGHTS)
    importance: Path | None = None
    executor: ExecutorConfig = field(default_factory=lambda: ExecutorConfig(max_new_tokens=16))

    def __post_init__(self) -> None:
        check_within(self, "num_threads", low=1, high=MAX_THREADS)


def torch_device(name: str) -> torch.device:
    """The device of a name; raises ValueError for an unknown or absent one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: use cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for and none is visible: use cpu or auto")
    return torch.device(name)


def build_executor(
    config: WorkerConfig, simulated: SimulatedLatency | None = None
) -> MolmoEExecutor:
    """Loads the frozen model; raises ValueError that names what is missing or wrong."""
    if config.dtype not in DTYPES:
        raise ValueError(f"unknown dtype {config.dtype!r}: use one of {', '.join(DTYPES)}")
    device = torch_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(config.num_threads)
    folder = resolve_folder(EMBEDDED if config.model == "embedded" else config.model)
    model = MolmoE.from_pretrained(folder, dtype=DTYPES[config.dtype], device=device)
    path = config.importance or folder / "importance_scores.json"
    return MolmoEExecutor(
        model,
        Preprocessor.from_pretrained(folder),
        BlockImportance.from_file(path, model.config.n_layers),
        config.executor,
        simulated,
    )


def build_tasks(names: tuple[str, ...]) -> TaskSource:
    """The mixture of these tasks; raises ValueError for an unknown name or none."""
    return Mixture(load_tasks(names))


def build_worker(
    config: WorkerConfig, name: str = "local", simulated: SimulatedLatency | None = None
) -> RolloutWorker:
    """A worker that is loaded but not warmed up.

    `simulated` replaces the clock by a table, for tests and dry runs only.
    """
    return RolloutWorker(build_executor(config, simulated), build_tasks(config.tasks), name)


def measure_budgets(worker: RolloutWorker, num_samples: int = 24) -> BudgetSampler:
    """The budget range of this device, from the cheapest and the full configuration."""
    worker.warm_up()
    ends = [worker.end_latencies("train", index) for index in range(num_samples)]
    return BudgetSampler.from_latencies(*zip(*ends, strict=True))


def make_env(
    model: str = "embedded",
    tasks: tuple[str, ...] = tuple(WEIGHTS),
    *,
    budgets: BudgetSampler | None = None,
    **arguments: Any,
) -> LatencyBudgetEnv:
    """The Gymnasium environment on the embedded model, or on another.

    Args:
        model: `embedded`, a folder or a hub id.
        tasks: names of the tasks in the mixture.
        budgets: draws budgets; measured on this device by default.
        arguments: further fields of `WorkerConfig` (dtype, device, ...).

    Returns:
        An environment whose budget tokens come from an untrained budget encoder.
    """
    worker = build_worker(WorkerConfig(model=model, tasks=tasks, **arguments))
    sampler = budgets or measure_budgets(worker)
    torch.manual_seed(0)
    controller = Controller(
        ControllerConfig(
            d_model=worker.executor.d_model,
            budget_low_ms=sampler.range.low_ms,
            budget_high_ms=sampler.range.high_ms,
        )
    )

    @torch.no_grad()
    def encode_budget(budget_ms: float):
        return controller.budget_tokens(torch.tensor([budget_ms]))[0].numpy()

    return LatencyBudgetEnv(
        executor=worker.executor,
        tasks=worker.tasks,
        budgets=sampler,
        reward=BudgetReward(),
        encode_budget=encode_budget,
    )

"""Settings of a rollout worker; a command line reads them without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from envs.checks import check_weights, check_within
from envs.tasks import WEIGHTS, Mixture
from envs.tasks.registry import build_tasks
from envs.tasks.vqa.config import DataConfig
from rollout.executor_config import ExecutorConfig

EMBEDDED = Path(__file__).parent / "embedded"
"""The small MolmoE that ships with the project."""

MAX_THREADS = 1024
"""More threads than any machine has cores; PyTorch aborts on far larger numbers."""

KEPT_GROUPS_MIB = 2048
"""Memory for prefixes that are kept for the vector-Jacobian product. A group of the published model
takes at most about 200 MiB, with all three tiers."""


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

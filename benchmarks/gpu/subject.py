"""The model that is measured: random weights in the published layout, its inputs and executors."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.plan import Plan
from benchmarks.random_model import BarePreprocessor, write
from envs.spec import Knobs, Sample, Tier
from rollout.block_skipping import BlockImportance
from rollout.executor import MolmoEExecutor
from rollout.executor_config import ExecutorConfig
from rollout.latency.clock import clock_for
from rollout.latency.hooks import Timeline
from rollout.molmoe import MolmoE, load_model
from rollout.molmoe.graphs import CudaGraphs
from rollout.molmoe.static_cache import Launcher, PlainCalls
from rollout.prefix import Prefix
from rollout.runtime import EagerRuntime, FixedShapeRuntime, Runtime


def launcher_for(device: torch.device) -> Launcher:
    """Graphs if there are any."""
    return CudaGraphs(device) if device.type == "cuda" else PlainCalls()


class Subject:
    """The loaded model with one executor for each way to decode.

    Args:
        plan: sizes.
        folder: where the weights are written; they are deleted after they are loaded.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        weights = folder / "weights"
        self.num_bytes = write(weights, plan.config, dtype=plan.dtype)
        try:
            self.model: MolmoE = load_model(weights, dtype=plan.dtype, device=plan.device)
        finally:
            shutil.rmtree(weights)
        self.launcher = launcher_for(plan.device)
        limit = plan.max_new_tokens
        self.fast = self.executor(FixedShapeRuntime(self.model, limit, self.launcher))
        self.uncaptured = self.executor(FixedShapeRuntime(self.model, limit, PlainCalls()))
        self.eager = self.executor(EagerRuntime(self.model))

    def executor(self, runtime: Runtime) -> MolmoEExecutor:
        """An executor of this model that decodes in a given way."""
        config = self.plan.config
        return MolmoEExecutor(
            self.model,
            BarePreprocessor(config),
            BlockImportance(scores=tuple(float((7 * i) % 16) for i in range(config.n_layers))),
            ExecutorConfig(max_new_tokens=self.plan.max_new_tokens),
            runtime=runtime,
        )

    def timeline(self) -> Timeline:
        """A timeline on the device's clock."""
        return Timeline(clock_for(self.plan.device))

    def sample(self, index: int = 0) -> Sample:
        """A question about noise."""
        size = (*self.plan.image_size, 3)
        pixels = np.random.default_rng(index).integers(0, 255, size, dtype=np.uint8)
        image = Image.fromarray(pixels)
        return Sample(id=f"noise-{index}", task="noise", image=image, prompt="q", answers=())

    def budget_token(self) -> np.ndarray:
        """A random budget token, float32 [D]."""
        return np.random.default_rng(0).normal(size=self.plan.config.d_model).astype(np.float32)

    def prefix(self, tier: Tier, position: int = 1, index: int = 0) -> Prefix:
        """A prompt that has passed the blocks before the insertion position."""
        prefix = self.fast.begin(self.sample(index), tier, self.budget_token())
        self.fast.deepen(prefix, position)
        return prefix


def knobs(top_k: int, num_blocks: int, tier: Tier = Tier.HIGH) -> Knobs:
    """A configuration that applies top-k from block 1 on."""
    return Knobs(tier=tier, position=1, top_k=top_k, num_blocks=num_blocks)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high

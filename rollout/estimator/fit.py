"""Training of the latency estimator, epoch by epoch, on one process's share of every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rollout.estimator.estimator import LatencyEstimator, LatencyEstimatorTrainer
from rollout.estimator.latency_table import LatencyTable, take
from rollout.estimator.metrics import LatencyMetrics, evaluate_estimator


@contextmanager
def subnormals_as_zero() -> Iterator[None]:
    """Rounds subnormal numbers to zero in this thread.

    Gradients of units that hardly matter any more shrink to them, and some CPUs compute with them
    many times slower: four times in all over 30 epochs on an Intel Xeon.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """Settings of a fit.

    Attributes:
        batch_size: records per step, over all processes.
        num_epochs: passes over the training records.
        lr: Adam's initial learning rate.
        final_lr_share: the learning rate falls along a cosine to this share of `lr`.
        weight_decay: Adam's weight decay.
        hidden_dim: width of the estimator.
        num_layers: depth of its encoder.
        seed: seed of the initial weights and of the order of records.
        device: torch device.
    """

    batch_size: int = 64
    num_epochs: int = 50
    lr: float = 1e-3
    final_lr_share: float = 0.01
    weight_decay: float = 1e-5
    hidden_dim: int = 256
    num_layers: int = 2
    seed: int = 3407
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.batch_size, self.num_epochs) < 1 or not self.lr > 0:
            raise ValueError(
                f"batch_size {self.batch_size}, num_epochs {self.num_epochs}, lr {self.lr}: "
                "give positive numbers"
            )

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        cosine = 0.5 + 0.5 * np.cos(np.pi * epoch / max(1, self.num_epochs - 1))
        return float(self.lr * (self.final_lr_share + (1 - self.final_lr_share) * cosine))


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """Mean training losses (in squared units of the scale) and validation errors of an epoch."""

    epoch: int
    lr: float
    loss_prefill: float
    loss_decode: float
    val: LatencyMetrics

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch + 1}: loss {self.loss_prefill:.4f} + {self.loss_decode:.4f}, "
            f"val prefill {self.val.mae_prefill_ms:.3f} ms ({self.val.rel_error_prefill:.1%}), "
            f"decode {self.val.mae_decode_per_token_ms:.3f} ms per token "
            f"({self.val.rel_error_decode_per_token:.1%})"
        )


class EstimatorFit:
    """A resumable fit: the state after an epoch determines everything that follows.

    The order of records depends on (seed, epoch). With several processes, each takes every
    `world_size`-th record of a batch, so that their mean gradient is that of the batch.
    """

    def __init__(
        self,
        train: LatencyTable,
        val: LatencyTable,
        config: FitConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        if config.batch_size % world_size:
            raise ValueError(
                f"batch_size {config.batch_size} is not a multiple of {world_size} workers"
            )
        self.config, self.rank, self.world_size = config, rank, world_size
        self.val = val
        self.epoch = 0
        self._batch = train.batch(config.device)
        self._num_train = len(train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.estimator = LatencyEstimator(config.hidden_dim, config.num_layers)
        self.estimator.to(config.device).fit_scaling(self._batch)
        self.trainer = LatencyEstimatorTrainer(
            self.estimator,
            device=config.device,
            lr=config.lr,
            weight_decay=config.weight_decay,
            wrap=wrap,
        )

    def run_epoch(self) -> EpochRecord:
        """One pass over the training records, then the validation."""
        lr = self.config.lr_at(self.epoch)
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = lr
        with subnormals_as_zero():
            steps = [self.trainer.train_step(take(self._batch, rows)) for rows in self._batches()]
        self.epoch += 1
        return EpochRecord(
            epoch=self.epoch - 1,
            lr=lr,
            loss_prefill=float(np.mean([step["loss_prefill"] for step in steps])),
            loss_decode=float(np.mean([step["loss_decode"] for step in steps])),
            val=evaluate_estimator(self.estimator, self.val),
        )

    def _batches(self) -> list[torch.Tensor]:
        """This process's rows of each batch; a few records that do not divide evenly rest."""
        order = np.random.default_rng((self.config.seed, self.epoch)).permutation(self._num_train)
        order = order[: self._num_train // self.world_size * self.world_size]
        if len(order) == 0:
            raise ValueError(f"{self._num_train} records for {self.world_size} workers: use fewer")
        mine = torch.from_numpy(order[self.rank :: self.world_size]).to(self.config.device)
        return list(mine.split(self.config.batch_size // self.world_size))

    def state_dict(self) -> dict[str, Any]:
        """The state from which `load_state_dict` continues."""
        return {
            "epoch": self.epoch,
            "estimator": self.estimator.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the epoch of a `state_dict`."""
        self.epoch = state["epoch"]
        self.estimator.load_state_dict(state["estimator"])
        self.trainer.optimizer.load_state_dict(state["optimizer"])

"""The four stages (vision labels, text only, whole model, experts) and the loop that runs them."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Subset
from torch.utils.tensorboard import SummaryWriter

from launch.pretraining import forward as fw
from launch.pretraining.batches import QuestionBatch, Stream
from launch.pretraining.blueprint import new_model
from launch.pretraining.config import (
    StageConfig,
    TrainConfig,
)
from launch.pretraining.muon import make_optimizers
from launch.pretraining.steps import Trainee

STAGES = ("vision", "text", "joint", "experts")


def rate_share(step: int, config: StageConfig) -> float:
    """Learning rate at a step relative to its peak: warm-up, plateau, linear decay to 2 %."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (config.steps - step) / max(1.0, config.decay_share * config.steps)
    return warm * max(0.02, min(1.0, left))


class Pretraining:
    """Model, optimizers and progress; saves checkpoints, and resumes from the last one.

    Args:
        config: configuration of the whole pretraining.
        rank: rank of this worker.
        writes_curves: whether the worker of rank 0 writes TensorBoard curves.
    """

    def __init__(self, config: TrainConfig, *, rank: int = 0, writes_curves: bool = True) -> None:
        torch.set_num_threads(config.threads)
        self.config, self.rank = config, rank
        self.trainee = Trainee(new_model(config.seed))
        self.stage, self.step = 0, 0
        self.path = config.out / "checkpoint.pt"
        self.saved_optimizers: list[dict[str, Any]] | None = None
        if self.path.is_file():
            self._load()
        self.writer: SummaryWriter | None = None
        if rank == 0 and writes_curves:
            self.writer = SummaryWriter(str(config.out / "curves"))
        self.sums: dict[str, list[float]] = defaultdict(list)

    def run(self) -> None:
        """Runs all stages that are not finished yet."""
        fw.use_fast_operations()
        while self.stage < len(STAGES):
            self._run_stage(STAGES[self.stage])
            self.stage, self.step, self.saved_optimizers = self.stage + 1, 0, None
            self.save([])

    def _run_stage(self, name: str) -> None:
        stage: StageConfig = getattr(self.config, name)
        optimizers = make_optimizers(self.trainee, stage.optimizer)
        if self.saved_optimizers:
            for optimizer, state in zip(optimizers, self.saved_optimizers, strict=True):
                peaks = [group["peak"] for group in optimizer.param_groups]
                optimizer.load_state_dict(state)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["peak"] = peak
        stream = Stream(stage.stream, rank=self.rank)
        if name == "joint" and self.step == 0:
            self.trainee.calm_vision(Stream(stage.stream)[0])
        if self.step == 0:
            self.trainee.raise_experts(stage.experts_gain)
        rest = Subset(stream, range(self.step, stage.steps))
        loader = DataLoader(
            rest, batch_size=None, num_workers=1, prefetch_factor=6, multiprocessing_context="fork"
        )
        started, first = time.monotonic(), self.step
        for batch in loader:
            share = rate_share(self.step, stage)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * share
            self._update(name, stage, batch, optimizers)
            self.step += 1
            if self.step % self.config.log_steps == 0:
                speed = (time.monotonic() - started) / (self.step - first)
                self._log(name, stage, speed)
            if self.step % self.config.checkpoint_steps == 0:
                self.save(optimizers)

    def _update(self, name: str, stage: StageConfig, batch: QuestionBatch, optimizers: Any) -> None:
        loss = self._loss(name, stage, batch)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        weights = [w for w in self.trainee.parameters() if w.grad is not None]
        if dist.is_initialized() and dist.get_world_size() > 1:
            average_gradients(weights)
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        self.sums["grad_norm"].append(float(norm))
        for optimizer in optimizers:
            optimizer.step()

    def _loss(self, name: str, stage: StageConfig, batch: QuestionBatch) -> torch.Tensor:
        trainee, log = self.trainee, {}
        if name == "text" or not len(batch.images):
            loss, log = trainee.answer_losses(batch, None, self.config.loss)
        elif name == "vision":
            loss, patches, tokens = trainee.label_losses(trainee.see(batch), batch)
            tier = batch.tier.name
            log = {"loss/labels": float(loss.detach()), f"patches/{tier}": patches}
            log[f"tokens/{tier}"] = tokens
        else:
            tune = stage.vision_every > 0 and self.step % stage.vision_every == 0
            with torch.set_grad_enabled(tune):
                seen = trainee.see(batch)
            loss, log = trainee.answer_losses(batch, seen, self.config.loss)
            if tune:
                labels, _, tokens = trainee.label_losses(seen, batch)
                loss = loss + self.config.loss.labels * labels
                log[f"tokens/{batch.tier.name}"] = tokens
        for key, value in log.items():
            if value == value:  # a batch without labels has no accuracy
                self.sums[key].append(value)
        return loss

    def _log(self, name: str, stage: StageConfig, seconds_per_step: float) -> None:
        means = {key: sum(values) / len(values) for key, values in self.sums.items()}
        self.sums.clear()
        if self.writer is None:
            return
        for key, value in means.items():
            self.writer.add_scalar(f"{name}/{key}", value, self.step)
        parts = " ".join(
            f"{key.replace('token_accuracy/', '')} {value:.3f}" for key, value in means.items()
        )
        left = (stage.steps - self.step) * seconds_per_step / 60
        head = f"{name} {self.step}/{stage.steps} {seconds_per_step:.2f} s/step {left:.0f} min left"
        print(f"{head} | {parts}", flush=True)

    def save(self, optimizers: Any) -> None:
        """Writes the checkpoint atomically."""
        if self.rank != 0:
            return
        self.config.out.mkdir(parents=True, exist_ok=True)
        state = {
            "stage": self.stage,
            "step": self.step,
            "trainee": self.trainee.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def _load(self) -> None:
        try:
            state = torch.load(self.path, weights_only=True)
            self.trainee.load_state_dict(state["trainee"])
            self.stage, self.step = state["stage"], state["step"]
            self.saved_optimizers = state["optimizers"] or None
        except (RuntimeError, KeyError, EOFError, UnpicklingError) as error:
            raise ValueError(
                f"{self.path} is not a complete checkpoint of this model "
                f"({type(error).__name__}): move it away to start again, or give another --out"
            ) from error
        if self.rank == 0:
            print(f"resumed from {self.path}: stage {self.stage}, step {self.step}", flush=True)


def average_gradients(weights: list[torch.nn.Parameter]) -> None:
    """Averages the gradients over the workers, in a single all-reduce."""
    flat = torch.cat([w.grad.flatten() for w in weights if w.grad is not None])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for weight in weights:
        assert weight.grad is not None
        stop = start + weight.numel()
        weight.grad.copy_(flat[start:stop].view_as(weight))
        start = stop

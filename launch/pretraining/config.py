"""Settings of the pretraining; a command line reads them without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from envs.checks import check_weights, check_within


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """Composition of a stage's batches."""

    num_scenes: int = 16
    """Scenes per batch."""
    tail_tokens: int = 112
    """Tokens for questions after each scene."""
    task_weights: tuple[float, ...] = (0.12, 0.24, 0.24, 0.14, 0.16, 0.10)
    """Shares of easy_vqa, digits, reading, counting, recall and chain scenes."""
    tier_weights: tuple[float, ...] = (0.2, 0.15, 0.65)
    """Shares of the tiers low, medium and high."""
    dense: float = 0.3
    """Share of scenes that are filled with objects."""
    sheets: float = 0.0
    """Share of sheets of glyphs (without questions) instead of scenes."""
    text_every: int = 0
    """Every n-th batch is text only (recall and chain), with twice the number of rows; 1: every
    batch, 0: none."""
    easy_steps: int = 0
    """Number of steps during which small objects are rare at first and become more frequent."""
    seed: int = 0
    """Seed of the stream."""
    split: str = "train"
    """Split of the tasks from which scenes are drawn."""

    def __post_init__(self) -> None:
        check_within(self, "num_scenes", low=1)
        check_within(self, "tail_tokens", "text_every", "easy_steps", "seed", low=0)
        check_within(self, "dense", "sheets", low=0, high=1)
        check_weights("task_weights", self.task_weights)
        check_weights("tier_weights", self.tier_weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Learning rates of a stage."""

    muon_lr: float = 0.006
    """Muon's learning rate for matrices."""
    adam_lr: float = 0.002
    """AdamW's learning rate for embeddings, norms, biases, router and heads."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices, multiplied by their learning rate."""
    vision_share: float = 1.0
    """Factor on the learning rates of the vision encoder."""
    attention_share: float = 1.0
    """Factor on the learning rates of the decoder's attention."""

    def __post_init__(self) -> None:
        check_within(self, "muon_lr", "adam_lr", low=0, above=True)
        check_within(self, "weight_decay", "vision_share", "attention_share", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingLossConfig:
    """Weights of the losses."""

    labels: float = 0.5
    """Weight of the patch labels while the whole model is trained."""
    trace: float = 0.5
    """Weight of the running values of chains."""
    balance: float = 0.01
    """Weight of the load-balance loss of the experts."""
    blindness: float = 0.3
    """Weight of the attention loss of the guided heads."""
    dominance: float = 8.0
    """Weight of the dominance loss, which makes each token's weaker experts do their share; with
    0.5 the last blocks, which decide on the answer, relied on a single expert."""

    def __post_init__(self) -> None:
        check_within(self, "labels", "trace", "balance", "blindness", "dominance", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage: its length, data and learning rates."""

    steps: int
    """Optimizer steps."""
    stream: StreamConfig
    optimizer: OptimizerConfig
    warmup_steps: int = 50
    """Steps at the beginning over which the learning rates rise linearly."""
    decay_share: float = 0.45
    """Share of the steps, at the end, over which the learning rates decay to 2 %."""
    vision_every: int = 1
    """Every n-th step trains the vision encoder, which costs a third of such a step; 0: never."""
    experts_gain: float = 1.0
    """Factor on the experts' outputs, applied once before the first step."""

    def __post_init__(self) -> None:
        check_within(self, "steps", "warmup_steps", "vision_every", low=0)
        check_within(self, "decay_share", low=0, high=1)
        check_within(self, "experts_gain", low=0, above=True)


def _vision() -> StageConfig:
    return StageConfig(
        steps=3200,
        stream=StreamConfig(
            num_scenes=3,
            sheets=0.85,
            dense=0.9,
            easy_steps=1600,
            tail_tokens=1,
            task_weights=(0.1, 0.3, 0.3, 0.1, 0.2, 0.0),
            tier_weights=(0.05, 0.05, 0.9),
        ),
        optimizer=OptimizerConfig(muon_lr=0.008, adam_lr=0.002),
    )


def _text() -> StageConfig:
    return StageConfig(
        steps=500,
        stream=StreamConfig(text_every=1, num_scenes=6, seed=1),
        optimizer=OptimizerConfig(muon_lr=0.008, adam_lr=0.003),
    )


def _joint() -> StageConfig:
    return StageConfig(
        steps=9400,
        stream=StreamConfig(
            num_scenes=3,
            tail_tokens=112,
            task_weights=(0.06, 0.22, 0.28, 0.14, 0.20, 0.10),
            text_every=6,
            easy_steps=500,
            seed=2,
            tier_weights=(0.3, 0.2, 0.5),
        ),
        optimizer=OptimizerConfig(muon_lr=0.006, adam_lr=0.002, vision_share=0.15),
        warmup_steps=200,
        vision_every=2,
    )


def _experts() -> StageConfig:
    """Mostly trains the experts, to learn what attention did not, above all facts."""
    return StageConfig(
        steps=3100,
        stream=StreamConfig(
            num_scenes=3,
            tail_tokens=112,
            task_weights=(0.14, 0.13, 0.16, 0.16, 0.30, 0.11),
            seed=3,
            tier_weights=(0.2, 0.2, 0.6),
        ),
        optimizer=OptimizerConfig(
            muon_lr=0.004, adam_lr=0.001, vision_share=0.0, attention_share=0.2
        ),
        decay_share=0.6,
        vision_every=0,
        experts_gain=3.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Configuration of the whole pretraining."""

    out: Path = field(default_factory=lambda: Path.cwd() / "runs" / "pretrain_tiny")
    """Absolute folder for the checkpoint, the curves and the finished model."""
    vision: StageConfig = field(default_factory=_vision)
    text: StageConfig = field(default_factory=_text)
    joint: StageConfig = field(default_factory=_joint)
    experts: StageConfig = field(default_factory=_experts)
    loss: PretrainingLossConfig = field(default_factory=PretrainingLossConfig)
    seed: int = 0
    """Seed of the initial weights."""
    threads: int = 1
    """Threads per worker; one worker per core is faster than more threads."""
    checkpoint_steps: int = 100
    """Steps between checkpoints."""
    log_steps: int = 25
    """Steps between log lines."""

    def __post_init__(self) -> None:
        check_within(self, "seed", low=0)
        check_within(self, "threads", "checkpoint_steps", "log_steps", low=1)

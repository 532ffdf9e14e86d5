"""The vocabulary that every package shares: samples, tasks, knobs, budgets, executions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import product
from typing import Any, Protocol

import numpy as np
from PIL import Image

NUM_BLOCKS_TOTAL = 16
"""Number of decoder blocks that the knobs assume."""

FULL_TOP_K = 8
"""Experts per token in the blocks that run before stage 2 decides."""


class Tier(IntEnum):
    """Image tier: the maximum number of high-resolution crops."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2

    @property
    def max_crops(self) -> int:
        """Maximum number of crops of this tier, without the global one."""
        return (3, 6, 12)[self]

    @classmethod
    def parse(cls, value: Tier | int | str) -> Tier:
        """Returns the tier of a name ("low") or index; raises ValueError for anything else."""
        try:
            return cls[value.upper()] if isinstance(value, str) else cls(value)
        except (KeyError, ValueError):
            names = ", ".join(tier.name.lower() for tier in cls)
            raise ValueError(f"unknown tier {value!r}: use one of {names}, or 0, 1, 2") from None


TIERS = tuple(Tier)
POSITIONS = (1, 2, 3, 4, 5)
TOP_KS = (4, 5, 6, 7, 8)
NUM_BLOCKS = (12, 13, 14, 15, 16)
MIN_BLOCKS_AFTER_POSITION = 11


def allowed_num_blocks(position: int) -> tuple[int, ...]:
    """The values of num_blocks that stage 2 may choose after it ran at `position`.

    At least 11 blocks remain after the insertion position, so p=1 allows 12..16 and p=5 only 16.
    """
    if position not in POSITIONS:
        raise ValueError(f"unknown insertion position {position!r}: use one of {POSITIONS}")
    return tuple(n for n in NUM_BLOCKS if n - position >= MIN_BLOCKS_AFTER_POSITION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One of the controller's decisions.

    Attributes:
        name: the field of `Knobs`; also in the names of scalars and histograms.
        stage: 1 decides before the crops are encoded, 2 inside the prefill.
        choices: values by choice index.
        letter: precedes the value in the name of a configuration.
        plural: what a saved controller calls the choices.
        title: what figures call it.
        allowed_at: the choices of stage 2 at an insertion position; None if all are allowed.
    """

    name: str
    stage: int
    choices: tuple[int, ...]
    letter: str
    plural: str
    title: str
    allowed_at: Callable[[int], tuple[int, ...]] | None = None

    @property
    def amounts(self) -> tuple[int, ...]:
        """The choices as numbers to measure by: a tier counts as its maximum number of crops."""
        return tuple(c.max_crops if isinstance(c, Tier) else c for c in self.choices)

    def allowed(self, position: int) -> tuple[int, ...]:
        """The choices that are allowed at an insertion position.

        Raises:
            ValueError: the choices depend on the position, and it is not one.
        """
        return self.choices if self.allowed_at is None else self.allowed_at(position)


HEADS = (
    Head(name="tier", stage=1, choices=TIERS, letter="", plural="max_crops", title="max crops"),
    Head(
        name="position",
        stage=1,
        choices=POSITIONS,
        letter="p",
        plural="positions",
        title="insertion position",
    ),
    Head(name="top_k", stage=2, choices=TOP_KS, letter="k", plural="top_ks", title="top-k"),
    Head(
        name="num_blocks",
        stage=2,
        choices=NUM_BLOCKS,
        letter="b",
        plural="num_blocks",
        title="blocks",
        allowed_at=allowed_num_blocks,
    ),
)
"""The heads in the order of actions and log-probabilities, those of stage 1 first."""

STAGE1_HEADS = tuple(head for head in HEADS if head.stage == 1)
STAGE2_HEADS = tuple(head for head in HEADS if head.stage == 2)
STAGE1_SIZES = tuple(len(head.choices) for head in STAGE1_HEADS)
STAGE2_SIZES = tuple(len(head.choices) for head in STAGE2_HEADS)
HEAD_SIZES = (*STAGE1_SIZES, *STAGE2_SIZES)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Knobs:
    """One whole configuration, a field per head; raises ValueError for an invalid one."""

    tier: Tier
    position: int
    top_k: int
    num_blocks: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "tier", Tier.parse(self.tier))
        all_allowed = [head.allowed(self.position) for head in HEADS]
        for head, allowed in zip(HEADS, all_allowed, strict=True):
            value = getattr(self, head.name)
            if value in allowed:
                continue
            if head.allowed_at is None:
                raise ValueError(f"unknown {head.name} {value!r}: use one of {allowed}")
            raise ValueError(
                f"{head.name} {value!r} is masked at position {self.position}: "
                f"use one of {list(allowed)}"
            )

    @classmethod
    def from_indices(cls, indices: Iterable[Any]) -> Knobs:
        """Builds a configuration from one choice index per head."""
        values = chosen_values(HEADS, indices)
        return cls(**{head.name: value for head, value in zip(HEADS, values, strict=True)})

    def indices(self) -> tuple[int, ...]:
        """The choice indices, in the order of the heads."""
        return tuple(head.choices.index(getattr(self, head.name)) for head in HEADS)

    def to_json(self) -> dict[str, Any]:
        """The choices as plain values."""
        values = {head.name: getattr(self, head.name) for head in HEADS}
        return {n: v.name.lower() if isinstance(v, Tier) else v for n, v in values.items()}

    def __str__(self) -> str:
        values = zip(HEADS, self.to_json().values(), strict=True)
        return "-".join(f"{head.letter}{value}" for head, value in values)


def chosen_values(heads: Iterable[Head], indices: Iterable[Any]) -> tuple[Any, ...]:
    """The values of heads from one choice index per head."""
    return tuple(head.choices[int(index)] for head, index in zip(heads, indices, strict=True))


FULL_KNOBS = Knobs(tier=Tier.HIGH, position=1, top_k=8, num_blocks=16)
CHEAPEST_KNOBS = Knobs(tier=Tier.LOW, position=1, top_k=4, num_blocks=12)


def all_knobs() -> Iterator[Knobs]:
    """The 225 valid configurations, tiers outermost."""
    for values in product(*(head.choices for head in HEADS)):
        chosen: dict[str, Any] = {h.name: v for h, v in zip(HEADS, values, strict=True)}
        if all(chosen[head.name] in head.allowed(chosen["position"]) for head in HEADS):
            yield Knobs(**chosen)


def knobs_by_name() -> dict[str, Knobs]:
    """The 225 valid configurations by name, such as low-p1-k4-b12."""
    return {str(knobs): knobs for knobs in all_knobs()}


class DataError(ValueError):
    """A sample or a split that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question, with or without an image.

    Attributes:
        id: TASK/SPLIT/INDEX, unique; profiles refer to their samples by it.
        task: name of the task.
        image: the image, if there is one.
        prompt: the user's text, starting with the style of the task; the preprocessor adds the role
            format.
        answers: reference answers.
        metadata: properties that make the question easy or hard.
    """

    id: str
    task: str
    image: Image.Image | None
    prompt: str
    answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Milliseconds of one stage, on the latency clock and on the wall clock."""

    ms: float = 0.0
    wall_ms: float = 0.0

    def __add__(self, other: Elapsed) -> Elapsed:
        return Elapsed(self.ms + other.ms, self.wall_ms + other.wall_ms)


Stages = dict[str, Elapsed]
"""Measured time by stage."""


def in_ms(stages: Mapping[str, Elapsed]) -> dict[str, float]:
    """Milliseconds by stage, on the latency clock."""
    return {name: elapsed.ms for name, elapsed in stages.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How an answer is decoded.

    Attributes:
        max_new_tokens: maximum length of the answer in tokens; None, or more than the executor
            allows, is the executor's own limit. A shorter one leaves room for a longer prompt.
        on_token: called with each token as soon as it is read; its time counts as decoding.
    """

    max_new_tokens: int | None = None
    on_token: Callable[[int], object] = lambda _token_id: None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: give at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """The result of running one configuration: the answer and its measured latency.

    Attributes:
        knobs: the configuration that ran.
        answer: decoded text without special tokens.
        num_output_tokens: number of decoded tokens, including the end-of-sequence token.
        finished: whether the model ended the answer itself, within the token limit.
        latency_ms: sum of the stages that count toward the budget, on the device clock, ms.
        wall_ms: the same sum on the wall clock.
        stages_ms: time of each measured stage on the device clock, ms.
        host_ms: time for tokenising and image resizing, which is not part of the latency, ms.
        num_vision_tokens: vision tokens of the prompt.
        num_text_tokens: text tokens of the prompt.
        tiling: rows and columns of the image's crops; (0, 0) without an image.
    """

    knobs: Knobs
    answer: str
    num_output_tokens: int
    finished: bool
    latency_ms: float
    wall_ms: float
    stages_ms: Mapping[str, float]
    host_ms: float
    num_vision_tokens: int
    num_text_tokens: int
    tiling: tuple[int, int]


NUM_SIZES = len(TIERS) + 1
"""Sizes that are known of a sample before any encoder runs: its vision tokens at each tier and the
tokens of its prompt, as logarithms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What stage 1 sees of a sample.

    Attributes:
        language: mean word embedding of the prompt, float32 [D].
        image: pooled features of the whole image at low resolution, from before the projector;
            then `NUM_SIZES` sizes; then 1 for a sample with an image, or 0 after features of
            zeros. float32 [I], I = 0 for an executor that does not look at images.
    """

    language: np.ndarray
    image: np.ndarray


class GroupSession(Protocol):
    """G episodes of one sample in flight on one model."""

    def features(self) -> tuple[Features, Stages]:
        """What stage 1 sees, and the time that this adds to an execution for a controller.

        Raises ValueError naming the sample if it is unusable.
        """
        ...

    def begin(self, choices: Sequence[tuple[Tier, int]], budget_token_D: np.ndarray) -> np.ndarray:
        """Runs each episode to its insertion position; returns latency tokens, float32 [G, D]."""
        ...

    def finish(
        self,
        choices: Sequence[tuple[int, int] | None],
        budget_ms: float | None = None,
    ) -> list[Execution | None]:
        """Runs each episode to its answer with its (top_k, num_blocks); None skips an episode.

        Executions that end near `budget_ms`, in ms of the device, may be measured repeatedly.
        """
        ...

    def cheapest_latency_ms(self) -> float:
        """Latency of the cheapest configuration on the sample, measured now."""
        ...


class Executor(Protocol):
    """A frozen model that runs episodes, as the environment sees it."""

    @property
    def d_model(self) -> int:
        """Width of language features and latency tokens."""
        ...

    @property
    def image_dim(self) -> int:
        """Length of the image feature, 0 without one."""
        ...

    def open(self, sample: Sample) -> GroupSession:
        """Starts a group of episodes on one sample."""
        ...


class Task(Protocol):
    """A source of samples that also scores answers."""

    def sample(self, split: str, index: int) -> Sample:
        """The sample of (split, index): the same on every machine and in every order.

        Raises:
            DataError: if the split is unknown or empty, or the sample's data is unusable.
        """
        ...

    def score(self, sample: Sample, answer: str) -> float:
        """Score in [0, 1] of a model's answer."""
        ...

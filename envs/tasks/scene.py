"""Shared by the tasks: scenes with questions, splits, and one sample per (split, index)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from envs.checks import did_you_mean
from envs.spec import DataError, Sample

SPLITS = ("train", "validation", "test")
"""The splits share no images, fonts, handwritten digits, wordings or held-out words."""


Box = tuple[int, int, int, int]
"""Left, top, right and bottom in px of a scene; right and bottom are exclusive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about a scene.

    Attributes:
        prompt: user text, starting with the style of the task.
        answers: reference answers (usually one).
        metadata: kind, sizes and counts that make it easy or hard.
        trace: for step-by-step questions, (characters of the prompt up to and including the
            step, value after it); pretraining supervises these, evaluation never sees them.
        where: (characters of the prompt up to and including the words that name a place, boxes of
            what stands there); only for pretraining, like `trace`.
        glyphs: boxes from which each token of the answer is read; only for pretraining.
    """

    prompt: str
    answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    trace: tuple[tuple[int, str], ...] = ()
    where: tuple[int, tuple[Box, ...]] | None = None
    glyphs: tuple[tuple[Box, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One image with some questions about it.

    Attributes:
        image: RGB picture.
        questions: at least one.
        labels: class (see `envs.tasks.render`) and colour of what is at each pixel, uint8
            [height, width, 2]; only for pretraining the vision encoder.
    """

    image: Image.Image
    questions: tuple[Question, ...]
    labels: np.ndarray


class SceneSource(Protocol):
    """A task that can ask several questions about one scene, for pretraining."""

    name: str

    def scene(
        self, split: str, rng: np.random.Generator, *, num_questions: int = 1, dense: bool = False
    ) -> Scene:
        """A random scene with up to `num_questions` questions; `dense` fills it with objects."""
        ...


def check_split(split: str) -> str:
    """Returns the split; raises DataError if there is no such split."""
    if split not in SPLITS:
        raise DataError(
            f"unknown split {split!r}: use one of {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}"
        )
    return split


def sample_rng(name: str, split: str, index: int) -> np.random.Generator:
    """The random stream of one sample; raises DataError for an unknown split or index."""
    check_split(split)
    if index < 0:
        raise DataError(f"sample {name}/{split}/{index}: the index must not be negative")
    return np.random.default_rng([20240925, zlib.crc32(name.encode()), SPLITS.index(split), index])


def split_of(key: str, *, held_out: float = 0.3) -> str:
    """The split of a key (a word, a program), by a stable hash."""
    position = (zlib.crc32(("split:" + key).encode()) % 10007) / 10007
    if position >= held_out:
        return "train"
    return "validation" if position < held_out / 2 else "test"


def sample_from_scene(source: SceneSource, split: str, index: int) -> Sample:
    """The sample of (split, index) of a task that renders scenes."""
    scene = source.scene(split, sample_rng(source.name, split, index))
    question = scene.questions[0]
    return Sample(
        id=f"{source.name}/{split}/{index}",
        task=source.name,
        image=scene.image,
        prompt=question.prompt,
        answers=question.answers,
        metadata=dict(question.metadata),
    )

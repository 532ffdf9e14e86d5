"""Batches by step number: the same stream on every machine, resumable at any step.

Shapes: B scenes, T tokens after the prefix (questions in sequence, then padding), H x W pixels,
L looks, M boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from envs.spec import Tier
from envs.tasks import Question, Scene
from envs.tasks.chain import Chain
from envs.tasks.counting import Counting
from envs.tasks.digits import Digits
from envs.tasks.easy_vqa import EasyVqa
from envs.tasks.reading import Reading
from envs.tasks.recall import Recall
from envs.tasks.scene import Box
from launch.pretraining.blueprint import build_tokenizer
from launch.pretraining.config import StreamConfig
from launch.pretraining.sheets import rolled_sheet

IGNORE = -100
SOURCES = {
    source.name: source
    for source in (EasyVqa(), Digits(), Reading(), Counting(), Recall(), Chain())
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionBatch:
    """Scenes with their questions.

    Attributes:
        tier: tier by which all images of the batch are cropped.
        images: uint8 [B, H, W, 3]; empty if the batch is text only.
        labels: uint8 [B, H, W, 2]: class and colour of each pixel; empty if the batch is text only.
        tokens: int64 [B, T].
        segments: int64 [B, T]: number of the question, from 1; each padding token is a segment of
            its own, with a number from 1000.
        offsets: int64 [B, T]: position within the question.
        targets: int64 [B, T]: the answer token to predict here, or IGNORE.
        traces: int64 [B, T]: the running value after this step of a chain, or IGNORE.
        tasks: int64 [B, T]: index of the question's task, -1 in padding.
        looks: int64 [L, 3]: tokens that should attend to a part of the image: row, position in the
            row, and 1 if the answer is read there, 0 if the words only name the location.
        boxes: int64 [M, 5]: the parts to attend to: index of the look, then the box in px.
    """

    tier: Tier
    images: Tensor
    labels: Tensor
    tokens: Tensor
    segments: Tensor
    offsets: Tensor
    targets: Tensor
    traces: Tensor
    tasks: Tensor
    looks: Tensor
    boxes: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedQuestion:
    """Token ids of a prompt and its answer, with the targets at each token."""

    ids: list[int]
    targets: list[int]
    traces: list[int]
    looks: list[tuple[int, bool, tuple[Box, ...]]]
    """Position of the token, whether the answer is read there, and boxes to attend to."""


class Encoder:
    """Encodes questions as token ids, in the model's prompt format."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer = build_tokenizer()
        self.vocab = self.tokenizer.get_vocab()
        self.eos = 0
        self.role_ids = self.tokenizer.encode(" User:").ids

    def answer_ids(self, task: str, answer: str) -> list[int]:
        """Ids of an answer; answers of the reading task are always spelt character by character."""
        if task == "reading":
            pieces = [answer[0], *(f"##{char}" for char in answer[1:])]
            return [self.vocab[piece] for piece in pieces]
        return self.tokenizer.encode(answer).ids

    def encode(self, task: str, question: Question) -> EncodedQuestion:
        """Encodes prompt and answer; the end token is a target but not an input.

        The two tokens of the role are the same for all questions and belong to the shared prefix.
        """
        lead = " User: "
        prompt = self.tokenizer.encode(f"{lead}{question.prompt} Assistant:")
        shared, answer = len(self.role_ids), self.answer_ids(task, question.answers[0])
        ids = prompt.ids[shared:] + answer
        targets = [IGNORE] * (len(prompt.ids) - shared - 1) + answer + [self.eos]
        traces = [IGNORE] * len(ids)
        by_end = {end: place - shared for place, (_, end) in enumerate(prompt.offsets)}
        for end, value in question.trace:
            traces[by_end[len(lead) + end]] = self.vocab[value]
        first = len(prompt.ids) - shared - 1
        looks = [(first + i, True, boxes) for i, boxes in enumerate(question.glyphs) if boxes]
        if question.where is not None:
            end, boxes = question.where
            looks.append((by_end[len(lead) + end], False, boxes))
        return EncodedQuestion(ids=ids, targets=targets, traces=traces, looks=looks)


class Stream(Dataset[QuestionBatch]):
    """Batches of a stage, by step; workers of different rank get different batches."""

    def __init__(self, config: StreamConfig, *, rank: int = 0) -> None:
        self.config = config
        self.rank = rank
        self.encoder = Encoder()
        self.names = list(SOURCES)
        self.text_sources = (SOURCES["recall"], SOURCES["chain"])

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, step: int) -> QuestionBatch:
        config = self.config
        # The tier is the same on all workers, so that they take equally long.
        shared = np.random.default_rng([config.seed, step, 78])
        tier = Tier(int(shared.choice(3, p=np.array(config.tier_weights))))
        rng = np.random.default_rng([config.seed, self.rank, step, 77])
        scenes, rows = [], []
        text_alone = config.text_every > 0 and (step + 1) % config.text_every == 0
        for _ in range(config.num_scenes * (2 if text_alone else 1)):
            questions: list[tuple[str, Question]] = []
            if not text_alone:
                name = str(rng.choice(self.names, p=np.array(config.task_weights)))
                scene = self._scene(name, rng, step)
                scenes.append(scene)
                questions = [(name, question) for question in scene.questions]
            rows.append(self._row(questions, rng))
        if not scenes:
            return assemble(tier, rows, config.tail_tokens)
        images = torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes]))
        labels = torch.from_numpy(np.stack([scene.labels for scene in scenes]))
        return assemble(tier, rows, config.tail_tokens, images=images, labels=labels)

    def _scene(self, name: str, rng: np.random.Generator, step: int) -> Scene:
        if rng.random() < self.config.sheets:
            ease = max(0.0, 1 - step / max(1, self.config.easy_steps))
            return rolled_sheet(self.config.split, rng, smallest_px=round(7 + 4 * ease))
        dense = bool(rng.random() < self.config.dense)
        want_large = rng.random() > step / max(1, self.config.easy_steps)
        while True:
            scene = SOURCES[name].scene(self.config.split, rng, num_questions=18, dense=dense)
            sizes = [q.metadata.get("size_px", 99) for q in scene.questions]
            if not want_large or max(sizes) >= (8 if name == "counting" else 13):
                return scene

    def _row(
        self, questions: Sequence[tuple[str, Question]], rng: np.random.Generator
    ) -> list[tuple[int, EncodedQuestion]]:
        """As many of the scene's questions as fit, then text questions in the remaining space."""
        room, row = self.config.tail_tokens, []
        for name, question in questions:
            encoded = self.encoder.encode(name, question)
            if len(encoded.ids) <= room:
                row.append((self.names.index(name), encoded))
                room -= len(encoded.ids)
        while room > 0:
            name = "recall" if rng.random() < 0.35 else "chain"
            source: Any = SOURCES[name]
            encoded = self.encoder.encode(name, source.text_question(rng))
            if len(encoded.ids) > room:
                break
            row.append((self.names.index(name), encoded))
            room -= len(encoded.ids)
        return row


def assemble(
    tier: Tier,
    rows: Sequence[Sequence[tuple[int, EncodedQuestion]]],
    tail_tokens: int,
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
) -> QuestionBatch:
    """Concatenates the (task index, question) pairs of each scene into one row of a batch."""
    shape = (len(rows), tail_tokens)
    tokens, offsets = np.ones(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    segments = np.broadcast_to(1000 + np.arange(shape[1]), shape).copy()
    targets, traces = np.full(shape, IGNORE), np.full(shape, IGNORE)
    tasks = np.full(shape, -1)
    looks: list[tuple[int, int, bool]] = []
    boxes: list[tuple[int, ...]] = []
    for number, row in enumerate(rows):
        start = 0
        for segment, (task, question) in enumerate(row, start=1):
            span = slice(start, start + len(question.ids))
            tokens[number, span] = question.ids
            segments[number, span] = segment
            offsets[number, span] = np.arange(len(question.ids))
            targets[number, span] = question.targets
            traces[number, span] = question.traces
            tasks[number, span] = task
            for place, is_answer, seen in question.looks:
                boxes += [(len(looks), *box) for box in seen]
                looks.append((number, start + place, is_answer))
            start = span.stop
    none = torch.zeros(0, dtype=torch.uint8)
    return QuestionBatch(
        tier=tier,
        images=none if images is None else images,
        labels=none if labels is None else labels,
        tokens=torch.from_numpy(tokens),
        segments=torch.from_numpy(segments),
        offsets=torch.from_numpy(offsets),
        targets=torch.from_numpy(targets),
        traces=torch.from_numpy(traces),
        tasks=torch.from_numpy(tasks),
        looks=torch.tensor(looks, dtype=torch.int64).view(-1, 3),
        boxes=torch.tensor(boxes, dtype=torch.int64).view(-1, 5),
    )

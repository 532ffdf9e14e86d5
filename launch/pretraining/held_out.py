"""Fast held-out accuracy of a model in training: batched and teacher-forced.

An answer is correct if each of its tokens, including the end token, is the most likely one given
the tokens before it, that is, if greedy decoding gives exactly this answer. Partial credit (ANLS)
is left to the real executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from envs.spec import Sample, Tier
from envs.tasks import Question, load_tasks
from launch.pretraining import forward as fw
from launch.pretraining.batches import IGNORE, Encoder, QuestionBatch, assemble
from launch.pretraining.steps import Trainee


class Evaluator:
    """Encoded questions of one split, which can be evaluated with any knobs.

    Args:
        trainee: the model; its dtype is used.
        samples: at least one.
        rows: samples per batch.
    """

    def __init__(self, trainee: Trainee, samples: Sequence[Sample], *, rows: int = 40) -> None:
        self.trainee = trainee
        self.samples = sorted(samples, key=lambda sample: len(sample.prompt))
        encoder = Encoder()
        self.batches: list[QuestionBatch] = []
        self.seen: dict[tuple[Tier, int], Tensor] = {}
        for start in range(0, len(self.samples), rows):
            part = self.samples[start : start + rows]
            encoded = [
                encoder.encode(s.task, Question(prompt=s.prompt, answers=s.answers)) for s in part
            ]
            images = torch.from_numpy(np.stack([np.asarray(sample.image) for sample in part]))
            self.batches.append(
                assemble(
                    Tier.HIGH,
                    [[(0, question)] for question in encoded],
                    max(len(question.ids) for question in encoded),
                    images=images,
                )
            )

    @torch.no_grad()
    def scores(
        self, tier: Tier = Tier.HIGH, *, top_k: int | None = None, skipped: tuple[int, ...] = ()
    ) -> np.ndarray:
        """Scores of `self.samples`, 1 or 0 each, in their order."""
        out = []
        for number, batch in enumerate(self.batches):
            batch = replace(batch, tier=tier)
            if (tier, number) not in self.seen:
                self.seen[tier, number] = self.trainee.see(batch)
            hidden = self.trainee.hidden(
                batch, self.seen[tier, number], top_k=top_k, skipped=skipped
            )
            asked = batch.targets != IGNORE
            logits = fw.answer_logits(self.trainee.model, hidden.x_BTD[asked], self.trainee.dtype)
            wrong = torch.zeros_like(batch.targets, dtype=torch.bool)
            wrong[asked] = logits.argmax(-1) != batch.targets[asked]
            out.append((~wrong.any(-1)).float().numpy())
        return np.concatenate(out)

    def by_task(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """The scores grouped by task name."""
        tasks = np.array([sample.task for sample in self.samples])
        return {name: scores[tasks == name] for name in sorted(set(tasks))}


def held_out(split: str, count: int, names: Sequence[str] | None = None) -> list[Sample]:
    """Samples 0 .. count - 1 of each task's held-out split."""
    tasks = load_tasks() if names is None else load_tasks(names)
    return [task.sample(split, index) for task in tasks.values() for index in range(count)]

"""Baselines that know the kind of question but see neither image nor prompt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from envs.scoring import score_of
from envs.spec import Sample, Task


def answer_prior_scores(tasks: Task, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Scores [S] of two baselines, with which an accuracy should be compared.

    "majority" gives the most frequent answer of the same kind among these samples, which makes it
    slightly optimistic; "chance" picks uniformly among the distinct answers of the kind.

    Args:
        tasks: scores answers.
        samples: at least one; a kind is a task with a `metadata["kind"]`.
    """
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for sample in samples:
        answers[_kind(sample)][sample.answers[0]] += 1
    majority, chance = [], []
    for sample in samples:
        of_kind = answers[_kind(sample)]
        majority.append(score_of(tasks, sample, of_kind.most_common(1)[0][0]))
        chance.append(np.mean([score_of(tasks, sample, answer) for answer in of_kind]))
    return {"majority": np.array(majority, dtype=float), "chance": np.array(chance, dtype=float)}


def _kind(sample: Sample) -> tuple[str, str]:
    return sample.task, str(sample.metadata.get("kind", ""))

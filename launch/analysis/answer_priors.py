"""Baselines that know the kind of question but see neither image nor prompt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from envs.spec import Sample


def answer_prior_scores(
    score: Callable[[Sample, str], float], samples: Sequence[Sample]
) -> dict[str, np.ndarray]:
    """Scores [S] of two baselines, with which an accuracy should be compared.

    "majority" gives the most frequent answer of the same kind among these samples, which makes it
    slightly optimistic; "chance" picks uniformly among the distinct answers of the kind.

    Args:
        score: scores an answer to a sample.
        samples: at least one; a kind is a task with a `metadata["kind"]`.
    """
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for sample in samples:
        answers[_kind(sample)][sample.answers[0]] += 1
    majority = [score(sample, answers[_kind(sample)].most_common(1)[0][0]) for sample in samples]
    chance = [
        np.mean([score(sample, answer) for answer in answers[_kind(sample)]]) for sample in samples
    ]
    return {"majority": np.array(majority, dtype=float), "chance": np.array(chance, dtype=float)}


def _kind(sample: Sample) -> tuple[str, str]:
    return sample.task, str(sample.metadata.get("kind", ""))

"""What can be had without looking: answers that know the kind of question and nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from envs.spec import Sample


def blind_scores(
    score: Callable[[Sample, str], float], samples: Sequence[Sample]
) -> dict[str, np.ndarray]:
    """Scores [S] of the two baselines that an accuracy is read beside.

    "majority" gives the most frequent answer of its kind among these very samples, so it flatters
    itself a little; "chance" picks evenly among the different answers of the kind.

    Args:
        score: of an answer to a sample.
        samples: at least one; kinds are their task and `metadata["kind"]`.
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

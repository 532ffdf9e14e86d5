"""ANLS and exact match as Molmo's evaluation computes them.

They are stricter about spaces than `envs.tasks.metrics`, which collapses the spaces of both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

THRESHOLD = 0.5
"""Answers at this normalised edit distance or farther score 0."""


def molmo_anls(answer: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one question, in [0, 1].

    The best over the references of 1 - distance / length of the longer string, and 0 unless that
    quotient is BELOW 0.5: an answer at exactly 0.5 scores 0, where lmms-eval and `anls-star` give
    0.5. Letter case is ignored, spaces count. Two empty strings score 1; Molmo divides by zero.

    Source: Biten et al. (2019), equation 1; allenai/molmo, olmo/eval/vqa.py, anls_metric.

    Raises:
        ValueError: without a reference.
    """
    _check(references)
    return max(_similarity(answer, reference) for reference in references)


def molmo_exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference apart from letter case, else 0.

    Nothing else is forgiven: "two" is wrong for "2", and so is "2 " with a space.

    Source: allenai/molmo, olmo/eval/evaluators.py, the metric `em`.

    Raises:
        ValueError: without a reference.
    """
    _check(references)
    return float(answer.lower() in (reference.lower() for reference in references))


def _similarity(answer: str, reference: str) -> float:
    # Molmo takes the lengths before lower-casing, which matters for letters such as U+0130 only.
    longer = max(len(answer), len(reference))
    if longer == 0:
        return 1.0
    distance = Levenshtein.distance(answer.lower(), reference.lower()) / longer
    return 1.0 - distance if distance < THRESHOLD else 0.0


def _check(references: Sequence[str]) -> None:
    if not references:
        raise ValueError("no reference answer: leave questions without answers out of the split")

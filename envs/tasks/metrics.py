"""Metrics of short answers: exact match, ANLS, multiple choice by letter or text.

They ignore differences in spaces. Molmo's exact metrics are in `envs.tasks.vqa`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:$|[.:)](?:\s|$))")


def normalize_text(text: str) -> str:
    """Lower case, single spaces, nothing at the ends."""
    return " ".join(text.lower().split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference apart from case and spaces, else 0."""
    return float(normalize_text(answer) in map(normalize_text, references))


def anls(answer: str, references: Sequence[str], *, threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one question (Biten et al., 2019).

    The best over the references of 1 - d / max length, and 0 unless that distance is BELOW the
    threshold: a distance of exactly 0.5 scores 0, as in `anls` and Molmo (`anls-star` gives 0.5).
    Spaces are collapsed on both sides, as in `anls`; Molmo's evaluation takes them as they are.
    """
    best = 0.0
    for reference in references:
        distance = Levenshtein.normalized_distance(
            normalize_text(answer), normalize_text(reference)
        )
        if distance < threshold:
            best = max(best, 1.0 - distance)
    return best


def parse_choice(answer: str, options: Sequence[str]) -> int:
    """Index of the option that an answer means.

    In this order: the option's letter ("B", "(b)", "B: text"), the one option whose text equals
    the answer or is the only one that occurs in it as words, the option nearest by edit distance
    (the first one in a tie).
    """
    if not options:
        raise ValueError("multiple choice needs at least one option")
    letter = _LETTER.match(answer.strip())
    if letter:
        index = ord(letter[1].upper()) - ord("A")
        if index < len(options):
            return index
    text, texts = normalize_text(answer), [normalize_text(option) for option in options]
    if texts.count(text) == 1:
        return texts.index(text)
    inside = [i for i, t in enumerate(texts) if t and re.search(rf"\b{re.escape(t)}\b", text)]
    if len(inside) == 1:
        return inside[0]
    return min(range(len(texts)), key=lambda i: Levenshtein.distance(text, texts[i]))


def multiple_choice(answer: str, options: Sequence[str], correct: int) -> float:
    """1 if the parsed choice is the correct option, else 0."""
    return float(parse_choice(answer, options) == correct)

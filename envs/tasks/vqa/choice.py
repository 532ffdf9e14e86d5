"""Multiple choice as Molmo's evaluation scores it: the output against the options' letters."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


def molmo_choice(answer: str, letters: Sequence[str]) -> int:
    """Index of the letter that an answer means; letter case and outer spaces are ignored.

    In this order: the letter that equals the answer, the only one that contains it, the one at the
    smallest edit distance (the first one in a tie). The options' texts are ignored: "D: bad" is at
    distance 5 from each of A, B and D, and reads as A.

    Source: allenai/molmo, olmo/eval/vqa.py, select_mc_option, and the metric `mc`.

    Raises:
        ValueError: without letters, or if two are equal.
    """
    lower = [letter.strip().lower() for letter in letters]
    if not lower or len(set(lower)) < len(lower):
        raise ValueError(f"letters {list(letters)}: give each of the options a different one")
    answer = answer.strip().lower()
    if answer in lower:
        return lower.index(answer)
    containing = [i for i, letter in enumerate(lower) if answer in letter]
    if len(containing) == 1:
        return containing[0]
    return min(range(len(lower)), key=lambda i: Levenshtein.distance(lower[i], answer))


def molmo_choice_score(answer: str, letters: Sequence[str], correct: int) -> float:
    """1 if the answer means the letter at index `correct`, else 0.

    Raises:
        ValueError: as `molmo_choice`, and if there is no letter at that index.
    """
    if not 0 <= correct < len(letters):
        raise ValueError(
            f"option {correct} is correct, but there are letters {list(letters)}: give every "
            "option a letter, also those that the prompt cut off"
        )
    return float(molmo_choice(answer, letters) == correct)

"""Answer metrics: exact match, VQA soft accuracy, ANLS, multiple choice."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

ARTICLES = frozenset(("a", "an", "the"))
NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't "
    "mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've "
    "should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've "
    "you'd you'd've you'll you're you've"
).split()
CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in _CONTRACTED
    for place, char in enumerate(form)
    if char == "'"
}
"""Maps contractions without their apostrophe to the proper form, as in the official evaluation."""

_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_LETTER = re.compile(r"\(?([A-Za-z])\)?(?:$|[.:)](?:\s|$))")


def normalize_text(text: str) -> str:
    """Lower case, single spaces, nothing at the ends."""
    return " ".join(text.lower().split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference but for case and spaces, else 0."""
    return float(normalize_text(answer) in map(normalize_text, references))


def normalize_vqa(text: str) -> str:
    """The official VQA normalisation (vqaEval.py, processPunctuation and processDigitArticle).

    It is applied to every answer; the official script leaves both sides alone where all
    references are equal.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    number_with_comma = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        drop = number_with_comma or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if drop else " ")
    words = [NUMBER_WORDS.get(word, word) for word in _PERIOD.sub("", out).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """min(matches / 3, 1), the definition that Molmo's evaluation uses."""
    answer = normalize_vqa(answer)
    return min(sum(answer == normalize_vqa(r) for r in references) / 3, 1.0)


def vqa_accuracy_official(answer: str, references: Sequence[str]) -> float:
    """The official score: min(matches / 3, 1), averaged over leaving each reference out once."""
    if not references:
        raise ValueError("VQA accuracy needs at least one reference answer")
    answer = normalize_vqa(answer)
    matches = [answer == normalize_vqa(r) for r in references]
    return sum(min((sum(matches) - m) / 3, 1.0) for m in matches) / len(matches)


def anls(answer: str, references: Sequence[str], *, threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one question (Biten et al., 2019).

    The best over the references of 1 - d / max length, and 0 unless that distance is BELOW the
    threshold: a distance of exactly 0.5 scores 0, as in `anls` and Molmo (`anls-star` gives 0.5).
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
    (the first of equals).
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

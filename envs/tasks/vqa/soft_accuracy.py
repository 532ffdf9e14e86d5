"""The soft accuracy of VQA v2, OK-VQA and TextVQA, under its owners' names.

All count the annotators who gave the answer, and three suffice. Figures differ, so state whose
definition a figure uses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
} | {"somebody'd": "somebodyd"}
"""Maps forms that lack an apostrophe to the proper one, as in the official evaluation.

`somebody'd` is the wrong way round there, hence here. Four capitalised entries (`Im`, `Ive`,
`Id've`, `I'dve`) are left out: words are lower case by then, so that these can never match.
"""

_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the official code passes re.UNICODE, which is 32, where `sub` takes a count
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def normalize_vqa(text: str) -> str:
    """The normalisation of answers, in the order of the published code.

    Newlines and tabs become spaces; lower case, nothing at the ends. A punctuation mark is removed
    if it touches a space anywhere, or if the text has a comma within a number; else it becomes a
    space (apostrophe, colon, $, % and & stay). Periods go unless a digit follows, the first 32 of
    them. Number words become digits, articles go, contractions get their apostrophe.

    Source: GT-Vision-Lab/VQA, vqaEval.py; allenai/molmo, olmo/eval/vqa.py, preprocess_answer.
    """
    text = _single_line(text).lower().strip()
    number_with_comma = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        remove = number_with_comma or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if remove else " ")
    words = [NUMBER_WORDS.get(word, word) for word in _PERIOD.sub("", out, _MAX_PERIODS).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def molmo_soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """min(matches / 3, 1) after normalisation: 0, 1/3, 2/3 or 1.

    Source: allenai/molmo, olmo/eval/vqa.py, vqa_score.

    Raises:
        ValueError: without a reference.
    """
    _check(references)
    answer = normalize_vqa(answer)
    return min(sum(answer == normalize_vqa(r) for r in references) / 3, 1.0)


def vqa_v2_soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """min(matches among the others / 3, 1), averaged over leaving each reference out once.

    With ten references: 0, 0.3, 0.6, 0.9 or 1. Answers are normalised only where the references,
    as they were given, are not all equal: "Yes" against ten times "yes" scores 0.

    Source: GT-Vision-Lab/VQA, vqaEval.py, evaluate.

    Raises:
        ValueError: without a reference.
    """
    _check(references)
    answer, *given = (_single_line(text).strip() for text in (answer, *references))
    if len(set(given)) > 1:
        answer, *given = (normalize_vqa(text) for text in (answer, *given))
    return _left_out_once(answer, given)


def text_vqa_soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """As VQA v2's, with TextVQA's own normalisation, which always applies: "Yes." is "yes".

    It first removes every comma and question mark and parts "'s" from its word; the other steps
    are those of VQA v2.

    Source: facebookresearch/mmf, mmf/utils/m4c_evaluators.py, TextVQAAccuracyEvaluator.

    Raises:
        ValueError: without a reference.
    """
    _check(references)
    answer, *given = (_normalize_text_vqa(text) for text in (answer, *references))
    return _left_out_once(answer, given)


def _left_out_once(answer: str, references: Sequence[str]) -> float:
    matches = [answer == reference for reference in references]
    return sum(min((sum(matches) - match) / 3, 1.0) for match in matches) / len(matches)


def _normalize_text_vqa(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalize_vqa(text.strip())


def _single_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ")


def _check(references: Sequence[str]) -> None:
    if not references:
        raise ValueError("no reference answer: leave questions without answers out of the split")

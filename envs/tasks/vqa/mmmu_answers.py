"""MMMU's parsers of choice and open answers, and its scores.

Source: MMMU-Benchmark/MMMU, eval_utils.py; allenai/molmo has the same in olmo/eval. One thing
differs. Where no option is found in an answer, the published parser draws a letter from Python's
global generator, so that a score depends on what ran before. Here the letter comes from a generator
seeded by the sample's id (its CRC-32): a score is a function of (sample, answer).
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from string import ascii_uppercase

_TRIMMED = ",.!?;:'"
_KEY_PHRASES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_MIN_WORDS_FOR_TEXT = 6

_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234,567
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1.5e-3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 12, 1.5, .5
)


def mmmu_choice(answer: str, options: Sequence[str], sample_id: str) -> str:
    """The letter of the option that an answer means, always one of the options' letters.

    In this order: letters in brackets, "(A)"; letters between spaces, upper case only; in answers
    of at least six words, options whose text occurs, letter case ignored. If several are found,
    the one that occurs last counts. If none is found, a letter drawn by the sample's id: "A: cat"
    is such an answer.

    Raises:
        ValueError: without options, with an empty one, or with more than there are letters.
    """
    if not options or not all(options) or len(options) > len(ascii_uppercase):
        raise ValueError(f"options {list(options)}: give 1 to 26 texts, none of them empty")
    letters = ascii_uppercase[: len(options)]
    for mark in _TRIMMED:
        answer = answer.strip(mark)
    answer = f" {answer} "
    candidates = [{letter: answer.rfind(f"({letter})") for letter in letters}]
    candidates.append({letter: answer.rfind(f" {letter} ") for letter in letters})
    if len(answer.split()) >= _MIN_WORDS_FOR_TEXT:
        texts = zip(letters, options, strict=True)
        candidates.append({letter: answer.lower().rfind(text.lower()) for letter, text in texts})
    for places in candidates:
        last = max(letters, key=places.__getitem__)  # the first one in a tie, as in numpy's argmax
        if places[last] >= 0:
            return last
    return random.Random(zlib.crc32(sample_id.encode())).choice(letters)


def mmmu_choice_score(answer: str, options: Sequence[str], correct: str, sample_id: str) -> float:
    """1 if the answer means the option with the letter `correct`, else 0.

    Raises:
        ValueError: as `mmmu_choice`, and if no option has that letter.
    """
    if len(correct) != 1 or correct not in ascii_uppercase[: len(options)]:
        raise ValueError(f"{correct!r} is not a letter of the {len(options)} options")
    return float(mmmu_choice(answer, options, sample_id) == correct)


def mmmu_open_values(answer: str) -> frozenset[str | float]:
    """What an open answer may mean: key phrases and all numbers in them, normalised.

    Of each line, the key phrase is the shortest text after a word such as "is" or "answer", in the
    last line also after "="; without any, the whole answer counts.
    """
    text = answer.strip().strip(".").lower()
    lines = text.split("\n")
    phrases = [_key_phrase(line, _KEY_PHRASES) for line in lines[:-1]]
    phrases.append(_key_phrase(lines[-1], (*_KEY_PHRASES, "=")))
    keys = [phrase for phrase in phrases if phrase and phrase not in _TRIVIAL] or [text]
    numbers = [number for key in keys for form in _NUMBERS for number in form.findall(key)]
    return frozenset(value for part in (*keys, *numbers) for value in _normalize(part))


def mmmu_open_score(answer: str, references: Sequence[str]) -> float:
    """1 if a reference's text is inside a text of the answer, or a number equals it, else 0.

    Numbers are compared after rounding to two decimals.

    Raises:
        ValueError: without references, or with a blank one, which would be inside any answer.
    """
    if not references or not all(reference.strip() for reference in references):
        raise ValueError(f"references {list(references)}: give at least one, none of them blank")
    expected = [value for reference in references for value in _normalize(reference)]
    texts = [value for value in expected if isinstance(value, str)]
    return float(
        any(
            any(text in value for text in texts) if isinstance(value, str) else value in expected
            for value in mmmu_open_values(answer)
        )
    )


def _key_phrase(line: str, indicators: Sequence[str]) -> str:
    """The shortest text after an indicator's last occurrence; "" if there is none."""
    shortest = ""
    for indicator in indicators:
        if indicator in line:
            tail = line.split(indicator)[-1].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _normalize(text: str) -> tuple[str | float, ...]:
    """A number rounded to two decimals, or a text in lower case.

    A single character comes with a space before and after it, so that it matches a word only.
    """
    text = text.strip()
    try:
        return (round(float(text.replace(",", "")), 2),)
    except ValueError:
        text = text.lower()
        return (f" {text}", f"{text} ") if len(text) == 1 else (text,)

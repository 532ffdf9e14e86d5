import pytest

from envs.tasks.metrics import (
    anls,
    exact_match,
    multiple_choice,
    normalize_vqa,
    parse_choice,
    vqa_accuracy,
    vqa_accuracy_official,
)


def test_exact_match_ignores_case_and_spaces_only():
    assert exact_match("  Red ", ["blue", "red"]) == 1.0
    assert exact_match("red.", ["red"]) == 0.0
    assert exact_match("", ["red"]) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two dogs", "2 dogs"),
        ("An apple\n", "apple"),
        ("yes, it is", "yes it is"),  # comma before a space: dropped
        ("red/blue", "red blue"),  # no space around: replaced by a space
        ("1,000", "1000"),  # a comma inside a number: punctuation dropped
        ("3.5", "3.5"),  # a period before a digit stays
        ("dr.", "dr"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("None", "0"),
        ("tabs\there", "tabs here"),
    ],
)
def test_vqa_normalisation(text: str, expected: str):
    assert normalize_vqa(text) == expected


@pytest.mark.parametrize(
    ("matches", "simple", "official"),
    # leave-one-out of 10: with m matches, m folds see m - 1, the other 10 - m see m
    [(0, 0.0, 0.0), (1, 1 / 3, 0.3), (2, 2 / 3, 0.6), (3, 1.0, 0.9), (4, 1.0, 1.0), (10, 1.0, 1.0)],
)
def test_vqa_accuracy_both_definitions(matches: int, simple: float, official: float):
    references = ["The cat"] * matches + ["dog"] * (10 - matches)
    assert vqa_accuracy("cat", references) == pytest.approx(simple)
    assert vqa_accuracy_official("cat", references) == pytest.approx(official)


def test_vqa_official_needs_references():
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy_official("cat", [])


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("abcd", ["abcd"], 1.0),
        ("abce", ["abcd"], 0.75),  # one of four
        ("abxy", ["abcd"], 0.0),  # distance exactly 0.5: the border scores nothing
        ("abcxy", ["abcde"], 0.6),  # two of five
        ("Hello  World", ["hello world"], 1.0),
        ("abce", ["zzzz", "abcd"], 0.75),  # the best reference counts
        ("", ["abcd"], 0.0),
        ("", [""], 1.0),
        ("abcd", [], 0.0),
    ],
)
def test_anls(answer: str, references: list[str], expected: float):
    assert anls(answer, references) == pytest.approx(expected)


OPTIONS = ["a red fox", "the fox", "water", "ice"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1),
        ("(c)", 2),
        ("d: ice", 3),
        ("C.", 2),
        ("Water", 2),  # begins with a letter, but is no letter answer
        ("it is ice", 3),  # the only option inside
        ("a red fox", 0),
        ("watr", 2),  # nearest by edit distance
        ("Z", 3),  # no such option: nearest by edit distance
    ],
)
def test_parse_choice(answer: str, expected: int):
    assert parse_choice(answer, OPTIONS) == expected


def test_multiple_choice():
    assert multiple_choice("b", OPTIONS, 1) == 1.0
    assert multiple_choice("b", OPTIONS, 2) == 0.0
    with pytest.raises(ValueError, match="at least one option"):
        parse_choice("a", [])

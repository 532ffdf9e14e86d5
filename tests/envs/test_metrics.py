import pytest

from envs.tasks.metrics import anls, exact_match, multiple_choice, parse_choice


def test_exact_match_ignores_case_and_spaces_only():
    assert exact_match("  Red ", ["blue", "red"]) == 1.0
    assert exact_match("red.", ["red"]) == 0.0
    assert exact_match("", ["red"]) == 0.0


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

import pytest

from envs.tasks.vqa.text_match import molmo_anls, molmo_exact_match


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("abcd", ["abcd"], 1.0),
        ("ABCD", ["abcd"], 1.0),
        ("abce", ["abcd"], 0.75),  # one of four
        ("abcxy", ["abcde"], 0.6),  # two of five
        ("abxy", ["abcd"], 0.0),  # two of four, exactly 0.5: the border scores nothing
        ("ab", ["abcd"], 0.0),  # divided by the longer length: again 0.5
        ("abcdefg", ["abcd"], 4 / 7),  # three of seven, below 0.5
        ("hello  world", ["hello world"], 11 / 12),  # spaces count: one of twelve
        ("hello world", ["hello world "], 11 / 12),  # also those of the reference
        ("abce", ["zzzz", "abcd"], 0.75),  # the best reference counts
        ("", ["abcd"], 0.0),
        ("", [""], 1.0),
        # U+0130 is two characters in lower case: distance 1, but the length before that is 2
        ("\u0130a", ["ia"], 0.0),
    ],
)
def test_anls(answer: str, references: list[str], expected: float):
    assert molmo_anls(answer, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("2", ["2"], 1.0),
        ("Red", ["blue", "rED"], 1.0),
        ("two", ["2"], 0.0),  # no number words
        ("2 ", ["2"], 0.0),  # no strip
        ("2.", ["2"], 0.0),
        ("the 2", ["2"], 0.0),
        ("", ["2"], 0.0),
    ],
)
def test_exact_match(answer: str, references: list[str], expected: float):
    assert molmo_exact_match(answer, references) == expected


def test_no_reference_is_an_error():
    with pytest.raises(ValueError, match="no reference answer"):
        molmo_anls("a", [])
    with pytest.raises(ValueError, match="no reference answer"):
        molmo_exact_match("a", [])

import pytest

from envs.tasks.vqa.choice import molmo_choice, molmo_choice_score


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        (" d ", "D"),
        ("B.", "B"),  # distance 1 from B, 2 from the others
        ("cat", "A"),  # 2 from A and C (one letter kept), 3 from B and D: the first of equals
        ("B: dog", "B"),  # 5 from B and D (kept once each), 6 from A and C
        ("D: bad", "A"),  # 5 from A, B and D, 6 from C
        ("C and D", "A"),  # 6 from A, C and D alike
        ("xyz", "A"),  # 3 from all
        ("", "A"),  # inside every letter, so not unique; then 1 from all
    ],
)
def test_molmo_choice(answer: str, expected: str):
    assert "ABCD"[molmo_choice(answer, "ABCD")] == expected


def test_the_only_letter_contains_an_empty_answer():
    assert molmo_choice("", ["A"]) == 0
    assert molmo_choice("b", ["A1", "B1"]) == 1  # inside the second alone


def test_nine_options():
    assert molmo_choice("I", "ABCDEFGHI") == 8
    # with the seven letters of Molmo's prompt the ninth option cannot be answered
    assert molmo_choice("I", "ABCDEFG") == 0
    with pytest.raises(ValueError, match="give every option a letter"):
        molmo_choice_score("I", "ABCDEFG", 8)


def test_score():
    assert molmo_choice_score("b", "ABC", 1) == 1.0
    assert molmo_choice_score("b", "ABC", 2) == 0.0


@pytest.mark.parametrize("letters", [[], ["A", "a"], ["A", "A "]])
def test_letters_must_differ(letters: list[str]):
    with pytest.raises(ValueError, match="a different one"):
        molmo_choice("a", letters)

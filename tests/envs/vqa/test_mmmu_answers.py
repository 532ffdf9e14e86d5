import random

import pytest

from envs.tasks.vqa.mmmu_answers import (
    mmmu_choice,
    mmmu_choice_score,
    mmmu_open_score,
    mmmu_open_values,
)

OPTIONS = ["red fox", "blue whale", "red fox cub", "ice"]
SAMPLE = "validation_Art_4"
DRAWN = "C"
"""What Random(crc32(SAMPLE)) draws from A, B, C, D."""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("B.,", "B"),  # trimmed mark by mark: first the comma, then the period
        ("(B)", "B"),
        ("The answer is (C), not A ", "C"),  # brackets go first
        ("(A) or (C)? (A)", "A"),  # the last occurrence
        ("between A and B", "B"),
        ("B and A are wrong , D is right", "D"),
        ("NASA is", DRAWN),  # no letter between spaces; lmms-eval reads A
        ("A: cat", DRAWN),  # neither in brackets nor between spaces
        ("b", DRAWN),  # upper case only
        ("ice", DRAWN),  # five words at most: texts are not searched
        ("I think it is the Blue Whale", "B"),  # seven words
        ("first ice then it is the blue whale", "B"),  # the last one
        ("I think it is a red fox", "A"),
        ("A whale is blue or is it red", "A"),  # the padded answer begins with " A "
        # A and C are found at the same place, the first of equals counts
        ("I think it is a red fox cub", "A"),
        ("it may be that one there", DRAWN),
        ("", DRAWN),
    ],
)
def test_choice(answer: str, expected: str):
    assert mmmu_choice(answer, OPTIONS, SAMPLE) == expected


def test_nine_options():
    assert mmmu_choice("(I)", [f"option {i}" for i in range(9)], SAMPLE) == "I"


def test_the_draw_is_a_function_of_the_sample():
    random.seed(0)
    state = random.getstate()
    drawn = [mmmu_choice("?", OPTIONS, f"validation_Art_{i}") for i in range(200)]
    assert random.getstate() == state
    assert drawn == [mmmu_choice("no idea", OPTIONS, f"validation_Art_{i}") for i in range(200)]
    # 50 each are expected, with a standard deviation of 6.1
    assert all(30 < drawn.count(letter) < 70 for letter in "ABCD")


def test_choice_score():
    assert mmmu_choice_score("B", OPTIONS, "B", SAMPLE) == 1.0
    assert mmmu_choice_score("B", OPTIONS, "C", SAMPLE) == 0.0


@pytest.mark.parametrize("options", [[], ["a", ""], ["x"] * 27])
def test_bad_options(options: list[str]):
    with pytest.raises(ValueError, match="1 to 26 texts"):
        mmmu_choice("A", options, SAMPLE)


@pytest.mark.parametrize("correct", ["E", "", "AB", "a"])
def test_correct_letter_must_exist(correct: str):
    with pytest.raises(ValueError, match="not a letter of the 4 options"):
        mmmu_choice_score("A", OPTIONS, correct, SAMPLE)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Tampa.", {"tampa"}),
        ("The answer is 3.14159", {3.14}),
        # after "is ", and the numbers in it: the one with commas ends before the period
        ("The mass is 1,234.5 kg", {"1,234.5 kg", 1234.0, 234.5}),
        # the pattern of plain numbers finds 2 and 3 within 2.5e3
        ("x = 2.5e3", {2500.0, 2.0, 3.0}),
        ("so x = 7\ny", {"x = 7", 7.0}),  # "=" counts in the last line only
        ("so x = 7", {7.0}),
        ("the final answer is B", {" b", "b "}),
        ("so it is :", {"so it is :"}),  # the shortest tail is trivial, so the whole answer
        # the tails: "the result is seven" after "so ", "is seven" after "result "
        ("so the result is seven", {"seven"}),
        # the split at ". " before a capital never fires on lower-cased text
        ("It is red. So blue", {"blue"}),
        ("-5", {-5.0}),
        ("", {""}),
    ],
)
def test_open_values(answer: str, expected: set[str | float]):
    assert mmmu_open_values(answer) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("it is Tampa, Florida", ["tampa"], 1.0),  # the reference inside the answer
        ("Tamp", ["Tampa"], 0.0),  # not the other way round
        ("about 3.428", ["24/7", "3.43"], 1.0),  # rounded to two decimals
        ("3.42", ["24/7", "3.429"], 0.0),  # 3.42 against 3.43
        ("1,000", ["1000"], 1.0),
        ("10", ["1"], 0.0),  # numbers are no substrings
        ("B", ["B"], 1.0),
        ("the answer is B", ["B"], 1.0),
        ("cab", ["B"], 0.0),  # "b" alone is padded: " b" and "b "
        ("x is a b c", ["b"], 1.0),
        ("MgS", ["$MgS$", "MgS"], 1.0),
        ("", ["MgS"], 0.0),
        ("nan", ["nan"], 0.0),  # Python reads a number, and it never equals itself
    ],
)
def test_open_score(answer: str, references: list[str], expected: float):
    assert mmmu_open_score(answer, references) == expected


@pytest.mark.parametrize("references", [[], [" "], ["a", ""]])
def test_bad_references(references: list[str]):
    with pytest.raises(ValueError, match="at least one, none of them blank"):
        mmmu_open_score("a", references)

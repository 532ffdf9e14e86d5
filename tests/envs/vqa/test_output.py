import pytest

from envs.tasks.vqa.output import scored_text


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (" Two  dogs ", "Two dogs"),  # spaces collapse, letter case stays
        ("tab\there", "tab here"),
        ("", ""),
        ("It is a cat. Answer: cat", "cat"),
        ("Answer: cat Answer: dog", "cat"),  # up to the second mark
        ("Answer: two  dogs\nor three", "two  dogs\nor three"),  # nothing collapses after a mark
        ("Answer:", ""),
        ("answer: cat", "answer: cat"),  # the mark's letter case counts
        ("cat\ndog\n dog ", "dog"),  # the most frequent line
        ("cat\ndog", "cat"),  # the first of equals
        ("cat\n\n\ndog", ""),  # two blank lines outvote two different answers
        ("a  cat\n", "a cat"),  # newlines at the end are no line
        ("cat\rdog", "cat dog"),  # a carriage return is a space
    ],
)
def test_scored_text(output: str, expected: str):
    assert scored_text(output) == expected

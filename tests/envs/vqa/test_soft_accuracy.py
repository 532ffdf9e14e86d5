import pytest

from envs.tasks.vqa.soft_accuracy import (
    CONTRACTIONS,
    molmo_soft_accuracy,
    normalize_vqa,
    text_vqa_soft_accuracy,
    vqa_v2_soft_accuracy,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two dogs", "2 dogs"),
        ("An apple\n", "apple"),
        ("tabs\there", "tabs here"),
        ("None", "0"),
        ("twenty", "twenty"),  # number words end at ten
        ("yes, it is", "yes it is"),  # a comma before a space: removed
        ("red/blue", "red blue"),  # no space around: becomes a space
        ("red/blue /", "redblue"),  # one slash touches a space, so all slashes are removed
        ("a-b, c", "b c"),  # the hyphen becomes a space, the comma goes, then the article
        ("1,000", "1000"),  # a comma within a number
        ("t-shirt 1,000", "tshirt 1000"),  # then every mark is removed
        ("it's $5: 10% & more", "it's $5: 10% & more"),  # these stay
        ("3.5", "3.5"),  # a period before a digit stays
        (".5", ".5"),
        ("5.", "5"),  # also after a digit: the look-behind of the pattern has no effect
        ("dr.", "dr"),
        ("u.s.a.", "usa"),
        ("." * 40, "." * 8),  # 32 periods at most
        ("dont", "don't"),
        ("DONT", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),  # the wrong way round in every copy
        ("somebodyd've", "somebody'd've"),
        ("somebodyd", "somebodyd"),
        ("Im", "im"),  # the capitalised keys can never match
        ("Ive", "ive"),
        ("shant the", "shan't"),
        ("", ""),
        ("a", ""),
    ],
)
def test_normalisation(text: str, expected: str):
    assert normalize_vqa(text) == expected


def test_contractions_are_keyed_by_lower_case():
    assert all(form == form.lower() for form in CONTRACTIONS)
    # 120 entries of the published dictionary, less four with capitals and two that map to
    # themselves (let's, she's)
    assert len(CONTRACTIONS) == 114


@pytest.mark.parametrize(
    ("matches", "molmo", "official"),
    # leave one out of 10: with m matches, m folds see m - 1, the other 10 - m see m;
    # m = 2: (2 * 1/3 + 8 * 2/3) / 10 = 0.6; m = 3: (3 * 2/3 + 7 * 1) / 10 = 0.9
    [(0, 0.0, 0.0), (1, 1 / 3, 0.3), (2, 2 / 3, 0.6), (3, 1.0, 0.9), (4, 1.0, 1.0), (9, 1.0, 1.0)],
)
def test_both_definitions(matches: int, molmo: float, official: float):
    references = ["The cat"] * matches + ["dog"] * (10 - matches)
    assert molmo_soft_accuracy("cat", references) == pytest.approx(molmo)
    assert vqa_v2_soft_accuracy("cat", references) == pytest.approx(official)


@pytest.mark.parametrize(
    ("answer", "references", "molmo", "official"),
    [
        ("yes", ["yes"] * 10, 1.0, 1.0),
        ("Yes", ["yes"] * 10, 1.0, 0.0),  # ten equal ones: nothing is normalised
        ("yes\n", ["yes"] * 10, 1.0, 1.0),  # but for newline, tab and outer spaces
        ("yes", ["yes "] * 9 + ["yes"], 1.0, 1.0),  # equal after that, so still not normalised
        ("Yes", ["yes "] * 9 + ["yes"], 1.0, 0.0),
        ("Yes", ["yes"] * 9 + ["no"], 1.0, 1.0),
        ("Yes", ["yes"] * 9 + ["YES"], 1.0, 1.0),  # raw answers differ, normalised ones do not
        ("2", ["two"] * 10, 1.0, 0.0),
    ],
)
def test_equal_references(answer: str, references: list[str], molmo: float, official: float):
    assert molmo_soft_accuracy(answer, references) == molmo
    assert vqa_v2_soft_accuracy(answer, references) == official


def test_no_reference_is_an_error():
    for score in (molmo_soft_accuracy, vqa_v2_soft_accuracy):
        with pytest.raises(ValueError, match="no reference answer"):
            score("cat", [])


@pytest.mark.parametrize(
    ("answer", "references", "text_vqa", "vqa_v2"),
    [
        # TextVQA's evaluator normalises always, VQA v2's only where the references differ
        ("Yes.", ["yes"] * 10, 1.0, 0.0),
        ("the yes", ["yes"] * 10, 1.0, 0.0),
        ("1,000", ["1000"] * 10, 1.0, 0.0),
        # the possessive is parted first, so that it equals one with a space
        ("bob's", ["bob 's"] * 9 + ["bob"], 1.0, 0.0),
        ("bobs", ["bob's"] * 9 + ["bob"], 0.0, 0.0),
        # commas go before the other marks, so that they do not say how hyphens are treated
        ("t-shirt 1,000", ["t shirt 1000"] * 9 + ["shirt"], 1.0, 0.0),
        ("tshirt 1000", ["t-shirt 1,000"] * 9 + ["shirt"], 0.0, 1.0),
        # the same counting: two of ten who said so
        ("red", ["red"] * 2 + ["blue"] * 8, pytest.approx(0.6), pytest.approx(0.6)),
        ("red", ["red"] * 3 + ["blue"] * 7, pytest.approx(0.9), pytest.approx(0.9)),
        ("green", ["red"] * 3 + ["blue"] * 7, 0.0, 0.0),
    ],
)
def test_text_vqa_and_vqa_v2(answer: str, references: list[str], text_vqa: float, vqa_v2: float):
    assert text_vqa_soft_accuracy(answer, references) == text_vqa
    assert vqa_v2_soft_accuracy(answer, references) == vqa_v2
    with pytest.raises(ValueError, match="no reference answer"):
        text_vqa_soft_accuracy(answer, [])

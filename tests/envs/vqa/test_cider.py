import math

import pytest

from envs.tasks.vqa.cider import (
    DocumentFrequencies,
    cider_d,
    cider_d_reward,
    corpus_cider_d,
)

PETS = [["a cat"], ["a dog"]]
"""Two images: idf is ln 2 for all n-grams but "a", which both images have: ln 1 = 0."""

FREQUENCIES = DocumentFrequencies.from_references(PETS)


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        # cosines 1 (cat), 1 (a cat), 0 and 0 for n = 3 and 4: 10 * 2 / 4
        ("a cat", 5.0),
        ("A cat.", 5.0),
        # only "a" is shared, of weight 0
        ("a dog", 0.0),
        # cosine 1 for n = 1 only; no bigram against one: exp(-1 / 72) = 0.986207
        ("cat", 2.5 * 0.986207),
        # clipped: min(2 ln 2, ln 2) * ln 2 / (2 ln 2 * ln 2) = 1/2; as many bigrams as "a cat"
        ("cat cat", 10 * 0.5 / 4),
        ("", 0.0),
        (" . ", 0.0),
    ],
)
def test_golden_scores(candidate: str, expected: float):
    assert cider_d(candidate, PETS[0], FREQUENCIES) == pytest.approx(expected, rel=1e-6)


def test_length_penalty():
    frequencies = DocumentFrequencies.from_references([["cat"], ["dog"]])
    # n = 1: seven words of weight ln 2, one of them shared: 1 / sqrt(7);
    # six bigrams against none: exp(-36 / 72) = exp(-0.5)
    expected = 10 / 4 / math.sqrt(7) * math.exp(-0.5)
    assert cider_d("cat b c d e f g", ["cat"], frequencies) == pytest.approx(expected)


def test_mean_over_references():
    # for "the cat": n = 1: ln2^2 / (ln2 * sqrt(2) ln2) = 1 / sqrt(2), nothing for n = 2;
    # 10 * (2 / 4 + 1 / sqrt(2) / 4) / 2
    references = ["a cat", "the cat"]
    frequencies = DocumentFrequencies.from_references([references, ["a dog"]])
    expected = 5 * (0.5 + 0.25 / math.sqrt(2))
    assert cider_d("a cat", references, frequencies) == pytest.approx(expected)


def test_rare_words_weigh_more():
    # 4 images: "red" in two of them weighs ln 2, "cat" and "dog" in one weigh ln 4 = 2 ln 2:
    # (1, 2, 0) . (1, 0, 2) / 5 = 1/5 for n = 1; 10 * 0.2 / 4
    images = [["red cat"], ["red dog"], ["sky"], ["sea"]]
    frequencies = DocumentFrequencies.from_references(images)
    assert cider_d("red dog", ["red cat"], frequencies) == pytest.approx(0.5)


def test_an_ngram_counts_once_per_image():
    frequencies = DocumentFrequencies.from_references([["a cat", "a cat a"], ["a dog"], ["it"]])
    assert frequencies.counts == {"a": 2}  # n-grams of one image weigh as unseen ones
    assert frequencies.num_images == 3
    assert frequencies.idf("a") == pytest.approx(math.log(1.5))
    assert frequencies.idf("a cat") == frequencies.idf("unseen") == pytest.approx(math.log(3))


def test_the_maximum_is_ten():
    images = [["a cat sits there", "a cat sits there"], ["dogs run in snow"]]
    frequencies = DocumentFrequencies.from_references(images)
    assert cider_d("a cat sits there", images[0], frequencies) == pytest.approx(10.0)
    assert cider_d_reward("a cat sits there", images[0], frequencies) == pytest.approx(1.0)
    assert cider_d_reward("a cat sits there", images[0], frequencies) <= 1.0
    assert cider_d_reward("a cat", PETS[0], FREQUENCIES) == pytest.approx(0.5)


def test_corpus():
    # 5 for "a cat", 0 for the empty one
    assert corpus_cider_d(["a cat", ""], PETS) == pytest.approx(2.5)
    assert corpus_cider_d(["a cat", "a dog"], PETS) == pytest.approx(5.0)


def test_a_single_image_scores_zero():
    assert corpus_cider_d(["a cat sits there"], [["a cat sits there"]]) == 0.0


def test_scores_depend_on_the_corpus():
    other = DocumentFrequencies.from_references([["a cat"], ["a cat"]])
    assert cider_d("a cat", ["a cat"], other) == 0.0  # every n-gram is in every image


def test_own_tokens():
    # with str.split "cat." and "cat" differ: only "a" of weight 0 is left, and 5 becomes 0
    frequencies = DocumentFrequencies.from_references(PETS, tokenize=str.split)
    assert cider_d("a cat.", ["a cat"], frequencies, tokenize=str.split) == 0.0
    assert corpus_cider_d(["a cat", "a dog."], PETS, tokenize=str.split) == pytest.approx(2.5)
    assert cider_d_reward("a cat", ["a cat"], frequencies, tokenize=str.split) == 0.5


def test_bad_input():
    with pytest.raises(ValueError, match="no reference caption"):
        cider_d("a cat", [], FREQUENCIES)
    with pytest.raises(ValueError, match="at least one image"):
        DocumentFrequencies.from_references([])
    with pytest.raises(ValueError, match="at least one image"):
        corpus_cider_d([], [])
    with pytest.raises(ValueError, match="1 candidates for 2 images"):
        corpus_cider_d(["a cat"], PETS)

"""Document frequencies that are kept as hashes score as those of the n-grams themselves."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from envs.tasks.scene import SPLITS
from envs.tasks.vqa.arrow_cache import ArrowCache
from envs.tasks.vqa.cider import DocumentFrequencies, cider_d
from envs.tasks.vqa.cider_counts import frequencies_of
from envs.tasks.vqa.split import EMPTY
from tests.envs.vqa.opening import opened

WORDS = "a the red old cat dog bus sits runs on under near street table and café".split()


def captions(seed: int, count: int) -> list[list[str]]:
    rng = random.Random(seed)

    def caption() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randrange(3, 12)))

    return [[caption() for _ in range(5)] for _ in range(count)]


def test_scores_are_those_of_the_ngrams(tmp_path: Path):
    corpus = captions(0, 300)
    exact = DocumentFrequencies.from_references(corpus)
    cache, train = ArrowCache(folder=tmp_path), replace(EMPTY, key=("a",))
    kept = frequencies_of(corpus, train, cache)
    again = frequencies_of(iter(()), train, cache)
    assert kept.num_images == again.num_images == 300
    assert len(kept.counts) == len(exact.counts)
    for (candidate, *_), references in zip(captions(1, 100), captions(2, 100), strict=True):
        expected = cider_d(candidate, references, exact)
        assert cider_d(candidate, references, kept) == expected
        assert cider_d(candidate, references, again) == expected


def test_a_corpus_without_pictures_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one image"):
        frequencies_of([], EMPTY, ArrowCache(folder=tmp_path))


@pytest.mark.parametrize("form", ["coco_caption:parquet", "coco_caption:original"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_frequencies_are_of_the_training_split_alone(form: str, share: float, root: Path):
    task = opened(root, form, validation_share=share)
    train = [task.entry("train", index).answers for index in range(task.num_samples("train"))]
    frequencies = task.data_set._frequencies
    expected = DocumentFrequencies.from_references(train)
    assert frequencies.num_images == len(train) == task.num_samples("train")
    held_out = [
        task.entry(split, index).answers
        for split in ("validation", "test")
        for index in range(task.num_samples(split))
    ]
    everything = [text for answers in [*train, *held_out] for text in answers]
    for text in everything:
        for gram in text.lower().strip(" .\n").split():
            assert frequencies.idf(gram) == expected.idf(gram)
    assert {split: task.num_samples(split) > 0 for split in SPLITS}["test"]

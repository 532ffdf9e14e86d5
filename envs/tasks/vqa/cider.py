"""CIDEr-D, the score of captions, for single captions and for corpora.

A caption scores by how well its n-grams agree with those of the references; an n-gram counts more
the fewer images it describes. One number therefore has three inputs: the candidate, the references
and how often n-grams occur in a corpus. Scores with other frequencies, or from another set of
images, are not comparable.

Source: Vedantam et al. (2015), and salaniz/pycocoevalcap, cider_scorer.py, which the field uses.
Tokens come from `caption_tokens`, which is NOT the PTB tokenizer of published figures. For those,
tokenise with pycocoevalcap's PTBTokenizer and pass `tokenize=str.split`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from envs.tasks.vqa.caption_tokens import caption_tokens

Tokenizer = Callable[[str], list[str]]

MAX_N = 4
SIGMA = 6.0
MAX_CIDER_D = 10.0
"""The score of a candidate that equals all references and has n-grams of every length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFrequencies:
    """How many images of a corpus each n-gram describes, frozen for a reward.

    Attributes:
        num_images: number of images of the corpus.
        counts: for an n-gram, its words joined by spaces, the number of images that have it in a
            reference. N-grams of one image are left out, since unseen ones weigh the same.
    """

    num_images: int
    counts: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError("document frequencies need a corpus of at least one image")

    @classmethod
    def from_references(
        cls, references: Iterable[Sequence[str]], *, tokenize: Tokenizer = caption_tokens
    ) -> DocumentFrequencies:
        """Counts the n-grams of a corpus; each item holds the references of one image.

        Raises:
            ValueError: for an empty corpus.
        """
        num_images, counts = 0, Counter()
        for captions in references:
            num_images += 1
            counts.update({gram for caption in captions for gram in ngrams(tokenize(caption))})
        return cls(num_images=num_images, counts={g: c for g, c in counts.items() if c > 1})

    def idf(self, ngram: str) -> float:
        """log(images / images with this n-gram), where an unseen n-gram counts as one image's."""
        return math.log(self.num_images) - math.log(self.counts.get(ngram, 1))


def cider_d(
    candidate: str,
    references: Sequence[str],
    frequencies: DocumentFrequencies,
    *,
    tokenize: Tokenizer = caption_tokens,
) -> float:
    """CIDEr-D of one caption on the usual scale, from 0 to 10.

    For n = 1 to 4, the clipped cosine between tf-idf vectors of n-grams, times a Gaussian penalty
    with sigma 6 on the difference in length; the mean over n and references, times 10. Length is
    the number of bigrams, as in the published code. Frequencies of a single image have idf 0 and
    score every caption 0; so do empty candidates.

    Raises:
        ValueError: without a reference.
    """
    if not references:
        raise ValueError("no reference caption: leave images without captions out of the split")
    hypothesis = _Vector.of(tokenize(candidate), frequencies)
    targets = [_Vector.of(tokenize(reference), frequencies) for reference in references]
    return MAX_CIDER_D * sum(hypothesis.similarity(target) for target in targets) / len(targets)


def cider_d_reward(
    candidate: str,
    references: Sequence[str],
    frequencies: DocumentFrequencies,
    *,
    tokenize: Tokenizer = caption_tokens,
) -> float:
    """CIDEr-D divided by its maximum, 10: a score in [0, 1].

    The division is linear, so that mean rewards rank configurations as mean CIDEr-D does; a cap at
    1 would hide all differences between captions above it. Good captions stay far from 1, since
    people word captions differently: expect about 0.1.

    Raises:
        ValueError: without a reference.
    """
    score = cider_d(candidate, references, frequencies, tokenize=tokenize)
    return min(score / MAX_CIDER_D, 1.0)  # rounding may exceed 1


def corpus_cider_d(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Tokenizer = caption_tokens,
) -> float:
    """CIDEr-D of a corpus with its own frequencies, as the field reports it (often times 100).

    One candidate per image, in the order of the references; an empty one counts as 0.

    Raises:
        ValueError: for an empty corpus, or if the numbers of candidates and images differ.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} candidates for {len(references)} images: give one per image, "
            "an empty string where there is no caption"
        )
    frequencies = DocumentFrequencies.from_references(references, tokenize=tokenize)
    pairs = zip(candidates, references, strict=True)
    scores = [cider_d(caption, refs, frequencies, tokenize=tokenize) for caption, refs in pairs]
    return sum(scores) / len(scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vector:
    """The tf-idf weights of a caption's n-grams, for each n, with their Euclidean norms."""

    weights: Sequence[Mapping[str, float]]
    norms: Sequence[float]
    num_bigrams: int

    @classmethod
    def of(cls, tokens: Sequence[str], frequencies: DocumentFrequencies) -> _Vector:
        weights: list[dict[str, float]] = [{} for _ in range(MAX_N)]
        for ngram, count in ngrams(tokens).items():
            weights[ngram.count(" ")][ngram] = count * frequencies.idf(ngram)
        norms = [math.sqrt(sum(w * w for w in of_n.values())) for of_n in weights]
        return cls(weights=weights, norms=norms, num_bigrams=max(len(tokens) - 1, 0))

    def similarity(self, reference: _Vector) -> float:
        """Mean over n of the clipped cosine, times the length penalty: in [0, 1]."""
        cosines = 0.0
        for ours, theirs, norm, other in zip(
            self.weights, reference.weights, self.norms, reference.norms, strict=True
        ):
            if norm and other:
                overlap = sum(min(w, theirs[g]) * theirs[g] for g, w in ours.items() if g in theirs)
                cosines += overlap / (norm * other)
        difference = self.num_bigrams - reference.num_bigrams
        return cosines / MAX_N * math.exp(-(difference**2) / (2 * SIGMA**2))


def ngrams(tokens: Sequence[str]) -> Counter[str]:
    """Counts of the 1- to 4-grams, words joined by spaces."""
    return Counter(
        " ".join(tokens[start : start + n])
        for n in range(1, MAX_N + 1)
        for start in range(len(tokens) - n + 1)
    )

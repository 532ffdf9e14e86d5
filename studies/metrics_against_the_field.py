"""Compares our answer metrics with the field's own code on random cases.

    python -m studies.metrics_against_the_field --cases 2000 --mmmu eval/eval_utils.py

Into a copy of the project's environment: pip install --no-deps pycocoevalcap anls lmms-eval

It prints, for every metric, the largest difference. `--mmmu` takes the file eval/eval_utils.py of
MMMU-Benchmark/MMMU, which is in no package; the two draw other letters where an answer names no
option, so those answers are left out. With Java, captions are tokenised by the PTB tokenizer too.
`--quick` leaves out, and names, every comparison whose package is absent.
"""

import importlib.metadata
import importlib.util
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.options import read_options
from envs.tasks.vqa.caption_tokens import caption_tokens
from envs.tasks.vqa.cider import DocumentFrequencies, cider_d, corpus_cider_d
from envs.tasks.vqa.mmmu_answers import mmmu_choice, mmmu_open_score, mmmu_open_values
from envs.tasks.vqa.soft_accuracy import CONTRACTIONS, normalize_vqa, vqa_v2_soft_accuracy
from envs.tasks.vqa.text_match import molmo_anls
from launch.cluster.console import one_clear_error

WORDS = (
    "a the man woman dog cat's red on of with two in table sitting don't (left) t-shirt half-eaten "
    'street, holding phone. 3,000 #7 next to large white it\'s standing "stop" bus and/or'
).split()
MMMU_PIECES = (
    "the answer is so (A) (B) A B C D NASA it's blue whale ice = 3.5 1,200 2e3 -7 .5 final result "
    "therefore thus could be MgS . , ? : \n b 12.345 Tampa"
).split(" ")
OPTIONS = ("blue whale", "ice", "blue", "MgS")
REFERENCES = ("MgS", "3.5", "1200", "b", "Tampa", "12.35", "2000")


class AbsentError(ValueError):
    """A package of the field is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldConfig:
    """One comparison.

    Attributes:
        quick: few cases, with the packages that are there.
        cases: number of random cases of each metric.
        seed: seed of the cases.
        mmmu: eval_utils.py of MMMU-Benchmark/MMMU.
    """

    quick: bool = False
    cases: int = 2000
    seed: int = 0
    mmmu: Path | None = None


QUICK = FieldConfig(quick=True, cases=20)


def sentence(rng: random.Random, words: Sequence[str], longest: int) -> str:
    """Some of these words, at random."""
    return " ".join(rng.choices(words, k=rng.randint(1, longest)))


def noise(rng: random.Random) -> str:
    """A short answer full of what the normalisation of VQA looks at."""
    pieces = ["two", "a", "the", "none", "1,000", "3.5", ".", " ", ",", "-", "/", "'s", "Yes", "\t"]
    return "".join(rng.choices([*pieces, *CONTRACTIONS, *";:[]()!?@$&"], k=rng.randint(1, 8)))


def captions(rng: random.Random, cases: int) -> tuple[list[str], list[list[str]]]:
    """Candidates and one to seven references per image, some of them near the candidate."""
    candidates = [sentence(rng, WORDS, 14) for _ in range(cases)]
    references = [
        [
            " ".join(word if rng.random() < 0.7 else rng.choice(WORDS) for word in text.split())
            if rng.random() < 0.5
            else sentence(rng, WORDS, 14)
            for _ in range(rng.randint(1, 7))
        ]
        for text in candidates
    ]
    return ["" if rng.random() < 0.01 else text for text in candidates], references


def compare_cider(rng: random.Random, cases: int) -> Iterator[tuple[str, float]]:
    """CIDEr-D, and with Java the tokens of captions."""
    cider = foreign("pycocoevalcap.cider.cider").Cider()
    candidates, references = captions(rng, cases)
    own = [" ".join(caption_tokens(text)) for text in candidates]
    own_references = [[" ".join(caption_tokens(t)) for t in refs] for refs in references]
    field, field_each = cider.compute_score(
        dict(enumerate(own_references)), {i: [text] for i, text in enumerate(own)}
    )
    frequencies = DocumentFrequencies.from_references(references)
    each = [cider_d(c, refs, frequencies) for c, refs in zip(candidates, references, strict=True)]
    yield "CIDEr-D per image", float(np.abs(np.subtract(each, field_each)).max())
    yield f"CIDEr-D of a corpus ({field:.6f})", abs(corpus_cider_d(candidates, references) - field)
    if shutil.which("java"):
        ptb = (
            foreign("pycocoevalcap.tokenizer.ptbtokenizer")
            .PTBTokenizer()
            .tokenize(
                {i: [{"caption": text} for text in refs] for i, refs in enumerate(references)}
            )
        )
        pairs = [
            (ours, theirs)
            for i, texts in enumerate(own_references)
            for ours, theirs in zip(texts, ptb[i], strict=True)
        ]
        different = sum(ours != theirs for ours, theirs in pairs)
        yield (
            f"share of {len(pairs)} random captions with tokens unlike PTB's",
            different / len(pairs),
        )


def compare_anls(rng: random.Random, cases: int) -> Iterator[tuple[str, float]]:
    """Without double and outer spaces: `anls` collapses them, Molmo does not."""
    anls_score, worst = foreign("anls").anls_score, 0.0
    for _ in range(cases):
        answer = sentence(rng, list("abAB"), 8)
        references = [sentence(rng, list("abAB"), 8) for _ in range(rng.randint(1, 4))]
        worst = max(worst, abs(molmo_anls(answer, references) - anls_score(answer, references)))
    yield "ANLS", worst


def compare_vqa(rng: random.Random, cases: int) -> Iterator[tuple[str, float]]:
    """The two steps of lmms-eval's processor that are the official ones."""
    try:
        distribution = importlib.metadata.distribution("lmms-eval")
    except importlib.metadata.PackageNotFoundError as error:
        raise AbsentError("lmms-eval is absent: install the packages of --help") from error
    path = distribution.locate_file("lmms_eval/tasks/_task_utils/vqa_eval_metric.py")
    processor = module("vqa_eval_metric", Path(str(path))).EvalAIAnswerProcessor()

    def normalize(text: str) -> str:
        text = text.replace("\n", " ").replace("\t", " ").strip()
        return processor.process_digit_article(processor.process_punctuation(text))

    texts = [noise(rng) for _ in range(cases)]
    wrong = sum(normalize(text) != normalize_vqa(text) for text in texts)
    yield "VQA normalisation, share unlike", wrong / cases
    worst = 0.0
    for _ in range(cases):
        few = rng.sample(texts, k=rng.choice((1, 2, 4)))
        references = rng.choices(few, k=10)
        answer = rng.choice(few)
        ours = vqa_v2_soft_accuracy(answer, references)
        worst = max(worst, abs(ours - official(answer, references, normalize)))
    yield "official VQA accuracy", worst


def official(answer: str, references: list[str], normalize: Callable[[str], str]) -> float:
    """The official steps with explicit folds."""
    bare = [text.replace("\n", " ").replace("\t", " ").strip() for text in (answer, *references)]
    if len(set(bare[1:])) > 1:
        bare = [normalize(text) for text in bare]
    folds = [bare[1 : i + 1] + bare[i + 2 :] for i in range(len(references))]
    return float(np.mean([min(fold.count(bare[0]) / 3, 1) for fold in folds]))


def compare_mmmu(rng: random.Random, cases: int, field: Any) -> Iterator[tuple[str, float]]:
    """Choices and open answers, where the field does not guess."""
    letters = "ABCD"
    by_letter = dict(zip(letters, OPTIONS, strict=True))
    choices = parses = scores = drawn = 0
    for case in range(cases):
        answer = sentence(rng, MMMU_PIECES, 12)
        draws = set()
        for seed in range(12):
            field.random.seed(seed)
            draws.add(field.parse_multi_choice_response(answer, letters, by_letter))
        drawn += len(draws) > 1
        choices += len(draws) == 1 and draws != {mmmu_choice(answer, OPTIONS, str(case))}
        values = field.parse_open_response(answer)
        parses += set(values) != mmmu_open_values(answer)
        references = rng.sample(REFERENCES, k=rng.randint(1, 2))
        scores += field.eval_open(references, values) != mmmu_open_score(answer, references)
    yield f"MMMU choice, share unlike ({drawn} drawn at random left out)", choices / cases
    yield "MMMU open values, share unlike", parses / cases
    yield "MMMU open score, share unlike", scores / cases


def foreign(name: str) -> Any:
    """A module of another package, which this project does not need.

    Raises:
        AbsentError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise AbsentError(f"{error.name} is absent: install the packages of --help") from error


def module(name: str, path: Path) -> ModuleType:
    """Loads a single file, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def main() -> int:
    """Prints the largest difference of every metric."""
    options = read_options(QUICK, __doc__)
    rng, rows = random.Random(options.seed), []
    for compare in (compare_cider, compare_anls, compare_vqa):
        try:
            rows += compare(rng, options.cases)
        except AbsentError as error:
            if not options.quick:
                raise
            print(f"{compare.__name__} is left out: {error}")
    if options.mmmu:
        rows += compare_mmmu(rng, options.cases, module("mmmu_eval_utils", options.mmmu))
    for name, difference in rows:
        print(f"{name:60} {difference:.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

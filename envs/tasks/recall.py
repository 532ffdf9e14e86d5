"""Recall of learned facts about a code that is read from the image (a miniature of OK-VQA).

The facts are arbitrary but fixed and can only be learned, so all splits share them; images, fonts
and wordings are held out. Training asks often for a third of the codes and rarely for the others,
so that some facts are learned better than others.
"""

from __future__ import annotations

import zlib

import numpy as np

from envs.spec import Sample
from envs.tasks.metrics import exact_match
from envs.tasks.reading import BANDS, blank_bands, place_line
from envs.tasks.render import mixed_size
from envs.tasks.scene import Box, Question, Scene, sample_from_scene
from envs.tasks.wording import Wording

RELATIONS = {
    "home": "oslo lima cairo delhi paris quito rome tokyo bern seoul".split(),
    "food": "rice soup bread fish corn plum nuts cake beans figs".split(),
    "metal": "iron gold zinc lead tin silver copper nickel cobalt chrome".split(),
    "pet": "cat dog owl goat hen pony crow seal toad wolf".split(),
}
"""Relations that can be asked about a code, with their ten values."""

_PAIRS = tuple((letter, digit) for letter in "abcdefhkmnprtuwxyz" for digit in "0123456789")
CODES = (*(a + b for a, b in _PAIRS), *(b + a for a, b in _PAIRS))
"""360 codes, without letters that look like digits in some font."""

SMALL_PX, LARGE_PX = (7, 11), (11, 28)
ASK = Wording(
    openers=("what", "name", "give", "tell", "find"),
    bodies=("{relation} of {subject}", "{subject} {relation}"),
)


def fact(code: str, relation: str) -> str:
    """The one true value of a code's relation."""
    values = RELATIONS[relation]
    return values[zlib.crc32(f"fact:{relation}:{code}".encode()) // 7 % len(values)]


def is_common(code: str) -> bool:
    """Whether training asks for this code often."""
    return zlib.crc32(f"common:{code}".encode()) % 3 == 0


COMMON, RARE = tuple(filter(is_common, CODES)), tuple(c for c in CODES if not is_common(c))


def random_code(rng: np.random.Generator) -> str:
    """A random code; half of the draws come from the common third."""
    pool = COMMON if rng.random() < 0.5 else RARE
    return pool[rng.integers(len(pool))]


class Recall:
    """One to three codes in an image, 7 to 28 px high; four relations of each, 1,440 facts."""

    name = "recall"

    def scene(
        self, split: str, rng: np.random.Generator, *, num_questions: int = 1, dense: bool = False
    ) -> Scene:
        """See `envs.tasks.scene.SceneSource`."""
        canvas, bands = blank_bands(rng, dense=dense)
        lines = []
        for band in bands:
            code, size_px = random_code(rng), mixed_size(rng, SMALL_PX, LARGE_PX)
            size_px, boxes = place_line(canvas, split, code, band, size_px, rng)
            lines.append((band, code, size_px, boxes))
        pairs = [(line, relation) for line in lines for relation in RELATIONS]
        order = rng.permutation(len(pairs))[: max(1, num_questions)]
        questions = tuple(self._question(split, *pairs[i], rng=rng) for i in order)
        return Scene(image=canvas.image, questions=questions, labels=canvas.labels)

    def _question(
        self,
        split: str,
        line: tuple[int, str, int, tuple[Box, ...]],
        relation: str,
        *,
        rng: np.random.Generator,
    ) -> Question:
        band, code, size_px, boxes = line
        prompt = ASK.ask(split, rng, relation=relation, subject=BANDS[band])
        info = {"kind": relation, "size_px": size_px, "common": is_common(code)}
        prompt = f"recall: {prompt}"
        return Question(
            prompt=prompt,
            answers=(fact(code, relation),),
            metadata=info,
            where=(prompt.rindex(BANDS[band]) + len(BANDS[band]), boxes),
        )

    def text_question(self, rng: np.random.Generator) -> Question:
        """A question about a code in the prompt itself, a cheap way to teach facts."""
        code, relation = random_code(rng), str(rng.choice(tuple(RELATIONS)))
        prompt = ASK.ask("train", rng, relation=relation, subject=code)
        return Question(prompt=f"recall: {prompt}", answers=(fact(code, relation),))

    def sample(self, split: str, index: int) -> Sample:
        """See `envs.spec.Task`."""
        return sample_from_scene(self, split, index)

    def score(self, sample: Sample, answer: str) -> float:
        """Exact match."""
        return exact_match(answer, sample.answers)

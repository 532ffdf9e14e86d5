"""Rendered words and numbers in held-out fonts, like text in documents and scenes."""

from __future__ import annotations

import numpy as np

from envs.spec import Sample
from envs.tasks.metrics import anls
from envs.tasks.render import FONTS, HEIGHT, WIDTH, Canvas, mixed_size
from envs.tasks.scene import Box, Question, Scene, sample_from_scene, split_of
from envs.tasks.wording import Wording

BANDS = ("top", "middle", "bottom")
CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
SMALL_PX, LARGE_PX = (6, 10), (10, 30)
READ = Wording(
    openers=("what", "name", "give", "tell", "find", "read"),
    bodies=("{noun} at {place}", "{noun} {place}"),
)


def random_word(split: str, rng: np.random.Generator) -> str:
    """A pronounceable word of 3 to 5 letters that no other split uses."""
    while True:
        length = int(rng.integers(3, 6))
        start = int(rng.integers(2))
        pools = [(CONSONANTS, VOWELS)[(start + i) % 2] for i in range(length)]
        word = "".join(pool[rng.integers(len(pool))] for pool in pools)
        if split_of(word) == split:
            return word


def random_number(split: str, rng: np.random.Generator) -> str:
    """A number of 2 to 4 digits that no other split uses."""
    while True:
        number = str(rng.integers(10, 10 ** int(rng.integers(2, 5))))
        if split_of(number) == split:
            return number


def place_line(
    canvas: Canvas, split: str, text: str, band: int, size_px: int, rng: np.random.Generator
) -> tuple[int, tuple[Box, ...]]:
    """Writes one line into a third of the canvas; returns its real height and its characters."""
    font = int(rng.integers(len(FONTS[split])))
    while size_px > 6 and canvas.text_width(split, font, text, size_px) > WIDTH - 6:
        size_px -= 1
    room = WIDTH - 4 - canvas.text_width(split, font, text, size_px)
    x = int(rng.integers(2, max(3, room)))
    top, bottom = HEIGHT * band // 3, HEIGHT * (band + 1) // 3
    descent = max(2, round(0.3 * size_px))
    lowest = max(top + size_px + 2, bottom - descent)
    baseline = int(rng.integers(top + size_px + 1, lowest + 1))
    at = (x, min(baseline, HEIGHT - descent))
    return size_px, tuple(canvas.text(split, font, text, size_px, at, canvas.ink(rng)))


def blank_bands(rng: np.random.Generator, *, dense: bool) -> tuple[Canvas, list[int]]:
    """An empty canvas and the thirds of it that get a line: one to three, or all if `dense`."""
    num_lines = 3 if dense else int(rng.integers(1, 4))
    canvas = Canvas.blank(rng)
    return canvas, sorted(rng.choice(3, size=num_lines, replace=False).tolist())


class Reading:
    """One to three lines (words or numbers), tall letters 6 to 30 px high (font size 8 to 41)."""

    name = "reading"

    def scene(
        self, split: str, rng: np.random.Generator, *, num_questions: int = 1, dense: bool = False
    ) -> Scene:
        """See `envs.tasks.scene.SceneSource`."""
        canvas, bands = blank_bands(rng, dense=dense)
        lines = []
        for band in bands:
            noun = "word" if rng.random() < 0.5 else "number"
            text = random_word(split, rng) if noun == "word" else random_number(split, rng)
            size_px = mixed_size(rng, SMALL_PX, LARGE_PX)
            if dense and size_px < 14:
                text = text + text[::-1]
            size_px, boxes = place_line(canvas, split, text, band, size_px, rng)
            lines.append((band, noun, text, size_px, boxes))
        order = rng.permutation(len(lines))[: max(1, num_questions)]
        questions = tuple(self._question(split, *lines[i], rng=rng) for i in order)
        return Scene(image=canvas.image, questions=questions, labels=canvas.labels)

    def _question(
        self,
        split: str,
        band: int,
        noun: str,
        text: str,
        size_px: int,
        boxes: tuple[Box, ...],
        *,
        rng: np.random.Generator,
    ) -> Question:
        prompt = READ.ask(split, rng, noun=noun, place=BANDS[band])
        info = {"kind": noun, "size_px": size_px, "num_chars": len(text)}
        return Question(
            prompt=f"reading: {prompt}",
            answers=(text,),
            metadata=info,
            glyphs=tuple((box,) for box in boxes),
        )

    def sample(self, split: str, index: int) -> Sample:
        """See `envs.spec.Task`."""
        return sample_from_scene(self, split, index)

    def score(self, sample: Sample, answer: str) -> float:
        """ANLS, as for text in documents and scenes."""
        return anls(answer, sample.answers)

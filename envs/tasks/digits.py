"""Handwritten digits in a scene: read one, count, find, add."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs.spec import Sample
from envs.tasks.metrics import exact_match
from envs.tasks.render import HEIGHT, WIDTH, Canvas, mixed_size
from envs.tasks.scene import Box, Question, Scene, sample_from_scene
from envs.tasks.wording import Wording

PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
"""Cells of a 3x3 grid in row-major order."""

SMALL_PX, LARGE_PX = (8, 13), (13, 32)

READ = Wording(
    openers=("what", "name", "give", "tell", "find", "read"),
    bodies=("digit at {place}", "digit {place}"),
)
COUNT = Wording(openers=("how many", "count", "give count", "tell count"), bodies=("{d}", "of {d}"))
EXISTS = Wording(openers=("is there", "any", "find any", "tell if"), bodies=("{d}", "a {d}"))
SUM = Wording(openers=("sum", "add", "give sum", "tell sum"), bodies=("{place} and {other}",))


def cell_corner(cell: int, size_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """A random corner that keeps an object of this size inside its cell of the grid."""
    row, column = divmod(cell, 3)
    left, right = WIDTH * column // 3, WIDTH * (column + 1) // 3
    top, bottom = HEIGHT * row // 3, HEIGHT * (row + 1) // 3
    x = rng.integers(left + 1, max(left + 2, right - size_px))
    y = rng.integers(top + 1, max(top + 2, bottom - size_px))
    return int(x), int(y)


def place_digits(
    canvas: Canvas, split: str, digits: Mapping[int, int], size_px: int, rng: np.random.Generator
) -> dict[int, Box]:
    """Pastes digits by cell, all of about one size; returns where each is."""
    boxes = {}
    for cell, digit in digits.items():
        size = max(8, min(35, round(size_px * rng.uniform(0.92, 1.08))))
        boxes[cell] = canvas.digit(split, digit, size, cell_corner(cell, size, rng), rng)
    return boxes


class Digits:
    """scikit-learn's handwritten digits, 8 to 34 px high, up to one in each cell of a 3x3 grid."""

    name = "digits"

    def scene(
        self, split: str, rng: np.random.Generator, *, num_questions: int = 1, dense: bool = False
    ) -> Scene:
        """See `envs.tasks.scene.SceneSource`."""
        size_px = mixed_size(rng, SMALL_PX, LARGE_PX)
        num_digits = 9 if dense else int(rng.integers(2, 10))
        cells = sorted(rng.choice(9, size=num_digits, replace=False))
        pool = rng.choice(10, size=int(rng.integers(2, 11)), replace=False)
        digits = {int(cell): int(rng.choice(pool)) for cell in cells}
        canvas = Canvas.blank(rng)
        boxes = place_digits(canvas, split, digits, size_px, rng)
        info = {"size_px": size_px, "num_objects": num_digits}
        questions = tuple(
            self._question(split, digits, boxes, info, rng) for _ in range(num_questions)
        )
        return Scene(image=canvas.image, questions=questions, labels=canvas.labels)

    def _question(
        self,
        split: str,
        digits: dict[int, int],
        boxes: dict[int, Box],
        info: dict,
        rng: np.random.Generator,
    ) -> Question:
        kind = str(rng.choice(("read", "read", "count", "exists", "sum")))
        values = list(digits.values())
        if kind == "read":
            cell = int(rng.choice(list(digits)))
            text, answer = READ.ask(split, rng, place=PLACES[cell]), str(digits[cell])
            seen = [boxes[cell]]
        elif kind == "sum":
            first, second = (int(c) for c in rng.choice(list(digits), size=2, replace=False))
            text = SUM.ask(split, rng, place=PLACES[first], other=PLACES[second])
            answer = str(digits[first] + digits[second])
            seen = [boxes[first], boxes[second]]
        else:
            present = rng.random() < (0.5 if kind == "exists" else 0.85)
            absent = [d for d in range(10) if d not in values]
            digit = int(rng.choice(values if present or not absent else absent))
            wording = EXISTS if kind == "exists" else COUNT
            text = wording.ask(split, rng, d=digit)
            found = values.count(digit)
            seen = [boxes[cell] for cell, value in digits.items() if value == digit]
            answer = ("yes" if found else "no") if kind == "exists" else str(found)
        return Question(
            prompt=f"digits: {text}",
            answers=(answer,),
            metadata={"kind": kind, **info},
            glyphs=(tuple(seen),),
        )

    def sample(self, split: str, index: int) -> Sample:
        """See `envs.spec.Task`."""
        return sample_from_scene(self, split, index)

    def score(self, sample: Sample, answer: str) -> float:
        """Exact match."""
        return exact_match(answer, sample.answers)

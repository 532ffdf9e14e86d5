"""Counting objects: few or many, large or small, of a colour or a shape."""

from __future__ import annotations

import numpy as np

from envs.spec import Sample
from envs.tasks.metrics import exact_match
from envs.tasks.render import COLOR_NAMES, HEIGHT, SHAPES, WIDTH, Canvas, mixed_size
from envs.tasks.scene import Box, Question, Scene, sample_from_scene
from envs.tasks.wording import Wording

MAX_OBJECTS = 9
SMALL_PX, LARGE_PX = (4, 8), (8, 24)
SHAPE_MIN_PX = 9
"""Below this height shapes cannot be told apart, so their kind is not asked for."""

COUNT = Wording(
    openers=("how many", "count", "give count", "tell count", "find count"),
    bodies=("{what}", "of {what}"),
)


class Counting:
    """Up to nine filled shapes, 4 to 24 px; answers 0 to 9."""

    name = "counting"

    def scene(
        self, split: str, rng: np.random.Generator, *, num_questions: int = 1, dense: bool = False
    ) -> Scene:
        """See `envs.tasks.scene.SceneSource`."""
        size_px = mixed_size(rng, SMALL_PX, LARGE_PX)
        total = 9 if dense else int(rng.integers(1, MAX_OBJECTS + 1))
        colors = [str(c) for c in rng.choice(COLOR_NAMES, size=rng.integers(1, 4), replace=False)]
        shapes = [str(s) for s in rng.choice(SHAPES, size=rng.integers(1, 4), replace=False)]
        canvas = Canvas.blank(rng)
        objects: list[tuple[str, str]] = []
        boxes: list[Box] = []
        for corner in self._corners(total, size_px, rng):
            shape, color = str(rng.choice(shapes)), str(rng.choice(colors))
            boxes.append(canvas.shape(shape, color, size_px, corner, rng))
            objects.append((shape, color))
        info = {"size_px": size_px, "num_objects": len(objects)}
        questions = tuple(
            self._question(split, objects, boxes, info, rng) for _ in range(num_questions)
        )
        return Scene(image=canvas.image, questions=questions, labels=canvas.labels)

    def _corners(self, total: int, size_px: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        corners: list[tuple[int, int]] = []
        gap = size_px + max(2, size_px // 4)
        for _ in range(400):
            if len(corners) == total:
                break
            x = int(rng.integers(1, WIDTH - size_px))
            y = int(rng.integers(1, HEIGHT - size_px))
            if all(max(abs(x - u), abs(y - v)) >= gap for u, v in corners):
                corners.append((x, y))
        return corners

    def _question(
        self,
        split: str,
        objects: list[tuple[str, str]],
        boxes: list[Box],
        info: dict,
        rng: np.random.Generator,
    ) -> Question:
        kinds = ["all", "color", "color"] + ["shape"] * (info["size_px"] >= SHAPE_MIN_PX)
        kind = str(rng.choice(kinds))
        if kind == "all":
            what, answer, seen = "objects", len(objects), boxes
        else:
            place, names = (0, SHAPES) if kind == "shape" else (1, COLOR_NAMES)
            values = [entry[place] for entry in objects]
            present = rng.random() < 0.85
            what = str(rng.choice(values if present else names))
            answer = values.count(what)
            seen = [box for box, value in zip(boxes, values, strict=True) if value == what]
            what = f"{what}s" if kind == "shape" else f"{what} objects"
        return Question(
            prompt=f"counting: {COUNT.ask(split, rng, what=what)}",
            answers=(str(answer),),
            metadata={"kind": kind, "count": answer, **info},
            glyphs=(tuple(seen),),
        )

    def sample(self, split: str, index: int) -> Sample:
        """See `envs.spec.Task`."""
        return sample_from_scene(self, split, index)

    def score(self, sample: Sample, answer: str) -> float:
        """Exact match."""
        return exact_match(answer, sample.answers)

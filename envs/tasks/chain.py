"""Chains of steps that start from a digit in the image (science QA in miniature).

Each step maps the running digit to another: plus or minus a number modulo ten, or a named
permutation that must be known. The permutations generate a group without shortcuts, so n steps
need n computations in sequence, which is what depth is for.
"""

from __future__ import annotations

import numpy as np

from envs.spec import Sample
from envs.tasks.digits import PLACES, place_digits
from envs.tasks.metrics import exact_match
from envs.tasks.render import Canvas
from envs.tasks.scene import Box, Question, Scene, sample_from_scene, split_of

MAX_STEPS = 5
PERMUTATIONS = {
    "zig": (3, 7, 0, 9, 1, 8, 2, 6, 5, 4),
    "zag": (6, 2, 9, 5, 8, 0, 4, 3, 7, 1),
    "flip": (9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
    "hop": (1, 4, 6, 0, 7, 9, 3, 5, 2, 8),
    "spin": (2, 0, 5, 8, 6, 3, 9, 1, 4, 7),
    "twist": (4, 9, 1, 7, 3, 2, 8, 0, 6, 5),
}
SMALL_PX, LARGE_PX = (10, 16), (16, 32)


def apply_step(step: str, value: int) -> int:
    """The running digit after one step."""
    name, _, number = step.partition(" ")
    if name in PERMUTATIONS:
        return PERMUTATIONS[name][value]
    return (value + (int(number) if name == "plus" else -int(number))) % 10


def random_steps(split: str, num_steps: int, rng: np.random.Generator) -> tuple[str, ...]:
    """A program; those of three steps and more occur in one split only."""
    while True:
        steps = []
        for _ in range(num_steps):
            if rng.random() < 0.4:
                steps.append(f"{rng.choice(('plus', 'minus'))} {rng.integers(1, 10)}")
            else:
                steps.append(str(rng.choice(tuple(PERMUTATIONS))))
        if num_steps < 3 or split_of("chain " + " ".join(steps)) == split:
            return tuple(steps)


def chain_question(
    split: str,
    subject: str,
    start: int,
    num_steps: int,
    info: dict,
    rng: np.random.Generator,
    box: Box | None = None,
) -> Question:
    """A chain over `start`, which the prompt only calls `subject`."""
    prompt, value, trace = f"chain: {subject}", start, []
    where = None if box is None else (len(prompt), (box,))
    for step in random_steps(split, num_steps, rng):
        prompt, value = f"{prompt} {step}", apply_step(step, value)
        trace.append((len(prompt), str(value)))
    return Question(
        prompt=prompt,
        answers=(str(value),),
        metadata={"kind": f"{num_steps} steps", "num_steps": num_steps, **info},
        trace=tuple(trace),
        where=where,
    )


class Chain:
    """One to four digits, 10 to 32 px; one to five steps from one of them.

    Four steps leave many of 16 blocks idle.
    """

    name = "chain"

    def scene(
        self, split: str, rng: np.random.Generator, *, num_questions: int = 1, dense: bool = False
    ) -> Scene:
        """See `envs.tasks.scene.SceneSource`."""
        low, high = SMALL_PX if rng.random() < 0.3 else LARGE_PX
        size_px = int(rng.integers(low, high))
        num_digits = 9 if dense else int(rng.integers(1, 5))
        cells = rng.choice(9, size=num_digits, replace=False)
        digits = {int(cell): int(rng.integers(10)) for cell in cells}
        canvas = Canvas.blank(rng)
        boxes = place_digits(canvas, split, digits, size_px, rng)
        info = {"size_px": size_px, "num_objects": num_digits}
        questions = []
        for _ in range(num_questions):
            cell = int(rng.choice(list(digits)))
            steps = int(rng.integers(1, MAX_STEPS + 1))
            questions.append(
                chain_question(split, PLACES[cell], digits[cell], steps, info, rng, boxes[cell])
            )
        return Scene(image=canvas.image, questions=tuple(questions), labels=canvas.labels)

    def text_question(self, rng: np.random.Generator) -> Question:
        """A chain whose start is in the prompt: pretraining's cheap way to teach the steps."""
        start = int(rng.integers(10))
        return chain_question(
            "train", str(start), start, int(rng.integers(1, MAX_STEPS + 1)), {}, rng
        )

    def sample(self, split: str, index: int) -> Sample:
        """See `envs.spec.Task`."""
        return sample_from_scene(self, split, index)

    def score(self, sample: Sample, answer: str) -> float:
        """Exact match."""
        return exact_match(answer, sample.answers)

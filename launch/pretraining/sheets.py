"""Sheets full of glyphs, on which the vision encoder is trained first.

Scenes of the tasks are mostly empty, so that most of the encoder's computation on them teaches it
nothing; a sheet has something in every patch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from envs.tasks.render import COLOR_NAMES, FONTS, HEIGHT, LETTERS, SHAPES, WIDTH, Canvas
from envs.tasks.scene import Scene

GLYPHS = LETTERS + "0123456789" * 2


LARGEST_PX = 16
"""Largest glyph size; larger glyphs extend beyond the patches that attend to one another, and are
read at a lower tier or in the overview, where they are smaller."""

NUM_SHEETS = 2500
"""Number of distinct sheets per smallest size; drawing a new sheet costs as much as training on
it."""


def rolled_sheet(split: str, rng: np.random.Generator, *, smallest_px: int = 7) -> Scene:
    """A random one of the NUM_SHEETS sheets, rolled by random offsets in both directions."""
    original = _numbered_sheet(split, int(rng.integers(NUM_SHEETS)), smallest_px)
    shift = (int(rng.integers(HEIGHT)), int(rng.integers(WIDTH)))
    pixels = np.roll(np.asarray(original.image), shift, axis=(0, 1))
    labels = np.roll(original.labels, shift, axis=(0, 1))
    return Scene(image=Image.fromarray(pixels), questions=(), labels=labels)


@lru_cache(maxsize=NUM_SHEETS)
def _numbered_sheet(split: str, number: int, smallest_px: int) -> Scene:
    return sheet(split, np.random.default_rng([number, 5]), smallest_px=smallest_px)


def sheet(split: str, rng: np.random.Generator, *, smallest_px: int = 7) -> Scene:
    """A sheet of random text, handwritten digits or shapes, all of one size."""
    canvas = Canvas.blank(rng)
    kind = rng.choice(3, p=(0.5, 0.35, 0.15))
    size_px = round(float(np.exp(rng.uniform(np.log(smallest_px), np.log(LARGEST_PX)))))
    (_text, _digits, _shapes)[kind](canvas, split, size_px, rng)
    return Scene(image=canvas.image, questions=(), labels=canvas.labels)


def _text(canvas: Canvas, split: str, size_px: int, rng: np.random.Generator) -> None:
    baseline = int(rng.integers(size_px + 1, 2 * size_px + 2))
    while baseline + round(0.3 * size_px) < HEIGHT:
        font = int(rng.integers(len(FONTS[split])))
        x = int(rng.integers(1, 2 + size_px))
        count = int((WIDTH - x) / max(2, canvas.text_width(split, font, "0", size_px)))
        text = "".join(GLYPHS[i] for i in rng.integers(len(GLYPHS), size=count))
        while text and canvas.text_width(split, font, text, size_px) > WIDTH - x:
            text = text[:-1]
        if text:
            canvas.text(split, font, text, size_px, (x, baseline), canvas.ink(rng))
        baseline += round(size_px * rng.uniform(1.35, 1.8)) + 1


def _digits(canvas: Canvas, split: str, size_px: int, rng: np.random.Generator) -> None:
    size_px = max(8, size_px)
    y = int(rng.integers(0, size_px))
    while y + size_px < HEIGHT:
        x = int(rng.integers(0, size_px))
        while x + size_px < WIDTH:
            canvas.digit(split, int(rng.integers(10)), size_px, (x, y), rng)
            x += round(size_px * rng.uniform(0.9, 1.6))
        y += round(size_px * rng.uniform(1.0, 1.3))


def _shapes(canvas: Canvas, split: str, size_px: int, rng: np.random.Generator) -> None:
    size_px = max(4, size_px - 3)
    y = int(rng.integers(0, size_px))
    while y + size_px < HEIGHT:
        x = int(rng.integers(0, size_px))
        while x + size_px < WIDTH:
            shape, color = str(rng.choice(SHAPES)), str(rng.choice(COLOR_NAMES))
            canvas.shape(shape, color, size_px, (x, y), rng)
            x += round(size_px * rng.uniform(1.2, 2.2)) + 1
        y += round(size_px * rng.uniform(1.2, 1.7)) + 1

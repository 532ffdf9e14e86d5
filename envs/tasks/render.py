"""Drawing on the shared canvas: fonts by split, text, handwritten digits, label maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.spec import DataError
from envs.tasks.scene import Box, check_split, split_of

WIDTH, HEIGHT = 140, 112
"""Every scene's size; at the embedded model's high tier, pixels map one to one."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (214, 40, 40),
    "green": (30, 150, 60),
    "blue": (40, 70, 210),
    "yellow": (235, 200, 30),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
    "teal": (20, 140, 140),
    "brown": (130, 75, 35),
}
COLOR_NAMES = tuple(COLORS)

NUM_CLASSES = 1 + 10 + len(LETTERS) + len(SHAPES)
"""Label classes: nothing, digits 0-9, letters a-z, shapes."""

NUM_COLORS = 1 + len(COLORS)
"""Label colours: none of the named ones, then the names in order."""

FONTS = {
    "train": (
        "DejaVuSans.ttf DejaVuSans-Bold.ttf DejaVuSans-Oblique.ttf DejaVuSansMono.ttf "
        "DejaVuSansMono-Bold.ttf DejaVuSerif.ttf DejaVuSerif-Bold.ttf DejaVuSerif-Italic.ttf "
        "STIXGeneral.ttf STIXGeneralBol.ttf STIXGeneralItalic.ttf cmr10.ttf cmss10.ttf "
        "cmtt10.ttf cmb10.ttf "
        "Caladea-Regular.ttf Caladea-Bold.ttf Caladea-Italic.ttf "
        "Manrope-Regular.ttf Manrope-Bold.ttf "
        "HankenGrotesk-Regular.otf HankenGrotesk-SemiBold.otf HankenGrotesk-Italic.otf"
    ).split(),
    "validation": "Roboto-Regular.ttf Roboto-Medium.ttf Roboto-Bold.ttf Roboto-Italic.ttf".split(),
    "test": (
        "SourceSerifPro-Regular.ttf SourceSerifPro-Semibold.ttf SourceSerifPro-Bold.ttf "
        "SourceSerifPro-It.ttf"
    ).split(),
}
"""Fonts by split: matplotlib's, Caladea, Manrope and Hanken Grotesk; Roboto; Source Serif."""

FONT_PACKAGES = {
    "Caladea": "font_caladea",
    "Manrope": "font_manrope",
    "HankenGrotesk": "font_hanken_grotesk",
    "Roboto": "font_roboto",
    "SourceSerifPro": "font_source_serif_pro",
}
"""Package that holds a family; the other fonts come with matplotlib."""


def char_class(char: str) -> int:
    """Label class of a digit or a lower-case letter."""
    return 1 + int(char) if char.isdigit() else 11 + LETTERS.index(char)


def shape_class(shape: str) -> int:
    """Label class of a shape."""
    return 11 + len(LETTERS) + SHAPES.index(shape)


@cache
def font_path(split: str, number: int) -> Path:
    """Path of the split's font with this number; raises DataError if the file is missing."""
    name = FONTS[check_split(split)][number]
    package = FONT_PACKAGES.get(name.partition("-")[0])
    if package is None:
        import matplotlib  # takes a second, which command lines need not wait for

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    else:
        folder = Path(str(files(package))) / "files"
    path = folder / name
    if not path.is_file():
        raise DataError(f"font {path} of the {split} split is missing: reinstall its package")
    return path


@cache
def _font(split: str, number: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_path(split, number)), size)


@cache
def font_of_height(split: str, number: int, height_px: int) -> ImageFont.FreeTypeFont:
    """The font at the size whose tall letters are about `height_px` high."""
    top, bottom = _font(split, number, 100).getbbox("h")[1::2]
    return _font(split, number, max(5, round(100 * height_px / (bottom - top))))


@cache
def digit_images(split: str) -> tuple[tuple[np.ndarray, ...], ...]:
    """The split's handwritten digits by class: ink in [0, 1], [8, 8] each."""
    pools: list[list[np.ndarray]] = [[] for _ in range(10)]
    for number, row in enumerate(_digit_rows()):
        if split_of(f"digit {number}") == check_split(split):
            pools[int(row[-1])].append((row[:-1].reshape(8, 8) / 16.0).astype(np.float32))
    if not all(pools):
        raise DataError(f"the {split} split of the handwritten digits is empty")
    return tuple(map(tuple, pools))


def _digit_rows() -> np.ndarray:
    """Ink from 0 to 16 and class of the digits that scikit-learn ships, [1797, 65].

    Its file is read without scikit-learn, whose import takes seconds in every process.
    """
    package = find_spec("sklearn")
    folders = package.submodule_search_locations if package else None
    path = Path(next(iter(folders or [""]))) / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return np.column_stack((data.data, data.target))


@dataclass(slots=True, kw_only=True)
class Canvas:
    """A picture in the making, with its labels.

    Attributes:
        image: RGB.
        labels: uint8 [HEIGHT, WIDTH, 2], class and colour.
    """

    image: Image.Image
    labels: np.ndarray = field(default_factory=lambda: np.zeros((HEIGHT, WIDTH, 2), dtype=np.uint8))

    @classmethod
    def blank(cls, rng: np.random.Generator) -> Canvas:
        """An empty canvas of random light tint."""
        tint = rng.integers(225, 256, size=3)
        return cls(image=Image.new("RGB", (WIDTH, HEIGHT), tuple(map(int, tint))))

    def ink(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """A random colour that stands out from the background."""
        red, green, blue = rng.integers(0, 70, size=3)
        return int(red), int(green), int(blue)

    def text_width(self, split: str, font: int, text: str, height_px: int) -> int:
        """Width in px of a text in one of the split's fonts."""
        return round(font_of_height(split, font, height_px).getlength(text))

    def text(
        self, split: str, font: int, text: str, height_px: int, at: tuple[int, int], ink: tuple
    ) -> list[Box]:
        """Writes text with its baseline's left end at `at`; labels and returns each character."""
        face, draw = font_of_height(split, font, height_px), ImageDraw.Draw(self.image)
        x, baseline = at
        draw.text((x, baseline), text, font=face, fill=ink, anchor="ls")
        right, boxes = float(x), []
        for position, char in enumerate(text):
            left, right = right, x + face.getlength(text[: position + 1])
            box = (round(left), max(0, baseline - height_px), max(1, round(right)), baseline + 1)
            self._label(box, char_class(char))
            boxes.append(box)
        return boxes

    def _label(self, box: Box, kind: int, color: int = 0) -> None:
        left, top, right, bottom = box
        self.labels[top:bottom, left:right] = (kind, color)

    def digit(
        self, split: str, digit: int, size_px: int, at: tuple[int, int], rng: np.random.Generator
    ) -> Box:
        """Pastes a random handwritten digit of the split, `size_px` high, its corner at `at`."""
        pool = digit_images(split)[digit]
        ink = Image.fromarray(pool[rng.integers(len(pool))]).resize(
            (size_px, size_px), Image.Resampling.BICUBIC
        )
        mask = Image.fromarray((np.clip(np.asarray(ink), 0, 1) * 255).astype(np.uint8))
        self.image.paste(self.ink(rng), at, mask)
        x, y = at
        box = (x, y, x + size_px, y + size_px)
        self._label(box, char_class(str(digit)))
        return box

    def shape(
        self, shape: str, color: str, size_px: int, at: tuple[int, int], rng: np.random.Generator
    ) -> Box:
        """Draws a filled shape of a named colour in a square box with its corner at `at`."""
        draw = ImageDraw.Draw(self.image)
        jitter = rng.integers(-12, 13, size=3)
        fill = tuple(
            int(np.clip(c + j, 0, 255)) for c, j in zip(COLORS[color], jitter, strict=True)
        )
        x, y = at
        right, bottom = x + size_px - 1, y + size_px - 1
        if shape == "circle":
            draw.ellipse((x, y, right, bottom), fill=fill)
        elif shape == "square":
            draw.rectangle((x, y, right, bottom), fill=fill)
        else:
            draw.polygon([(x, bottom), (right, bottom), ((x + right) / 2, y)], fill=fill)
        box = (x, y, x + size_px, y + size_px)
        self._label(box, shape_class(shape), 1 + COLOR_NAMES.index(color))
        return box


def mixed_size(rng: np.random.Generator, small: tuple[int, int], large: tuple[int, int]) -> int:
    """A size in px: four times in ten from the small range, else from the large one."""
    low, high = small if rng.random() < 0.4 else large
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))

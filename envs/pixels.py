"""From any picture to the pixels that the model sees."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS = 2**25
"""Larger pictures are first reduced by a whole factor, so that memory stays bounded."""


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Any PIL image as RGB uint8 [H, W, 3], upright and of bounded size.

    In the published order: `convert("RGB")`, then the rotation that EXIF asks for, whose errors are
    ignored. For pictures with 8 bits per channel (1 bit, grey, palette, transparent, CMYK too) and
    at most MAX_PIXELS this is the published code's result, bit for bit. Pictures with 16 bits or
    more are scaled to 8 bits, where `convert` would turn almost all of their greys white.

    Source: allenai/molmo, olmo/data/model_preprocessor.py, load_image.

    Raises:
        ValueError: if the image cannot be decoded or has no pixels.
    """
    name = getattr(image, "filename", "") or "the image"
    try:
        image.load()
        if 0 in image.size:
            raise ValueError(f"it has no pixels, {image.size[0]} x {image.size[1]}")
        image = _of_bounded_size(_eight_bits(image))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # palettes with transparency as bytes
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be decoded ({error}): replace or drop it") from None
    with contextlib.suppress(Exception):  # broken EXIF tags raise many kinds of errors
        image = ImageOps.exif_transpose(image)
    return np.array(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, with greys of 16 bits or more as 8-bit greys; its EXIF tags are kept.

    Values of mode `I` that fit into 8 bits, and floating-point ones, stay as they are.
    """
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    is_deep = image.mode != "I" or values.max() > 255
    grey = (values // 257 if is_deep else values).clip(0, 255).astype(np.uint8)
    converted = Image.fromarray(grey)
    converted.info = dict(image.info)
    return converted


def _of_bounded_size(image: Image.Image) -> Image.Image:
    """The image reduced by the smallest whole factor that leaves at most MAX_PIXELS."""
    factor = 1
    while image.size[0] * image.size[1] // factor**2 > MAX_PIXELS:
        factor += 1
    if factor == 1:
        return image
    if image.mode not in ("L", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "F"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    reduced = image.reduce(factor)
    reduced.info = dict(image.info)
    return reduced

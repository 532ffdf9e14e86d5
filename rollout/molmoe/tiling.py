"""How an image is cut into crops: tilings, letterbox, and the `fill` alternative.

Shapes: H, W pixels; r x c tiling; g patches along a crop's side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

MAX_COVER_RATIO = 16
"""Covering may enlarge an image to at most this multiple of the canvas's pixels."""

Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class FillTier:
    """Crop counts of one tier in the study that first measured these knobs on MolmoE-1B-0924."""

    min_crops: int
    max_crops: int
    preferred: tuple[int, ...]


FILL_TIERS = {
    "low": FillTier(min_crops=1, max_crops=3, preferred=(2, 3)),
    "medium": FillTier(min_crops=4, max_crops=8, preferred=(6, 4, 8)),
    "high": FillTier(min_crops=9, max_crops=15, preferred=(12, 9, 15)),
}


def select_tiling(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """Rows and columns for the letterbox: the least upscaling, else the largest tiling that helps.

    Args:
        height: pixels, without the crops' overlap margin (may be negative for small images).
        width: the same for the width.
        window: stride of the crops in pixels.
        max_crops: maximum number of crops, without the global one.
    """
    tilings = sorted(
        ((r, c) for r in range(1, max_crops + 1) for c in range(1, max_crops // r + 1)),
        key=lambda rc: (rc[0] * rc[1], rc[0]),
    )
    size = np.array([height, width], dtype=np.float32)
    with np.errstate(divide="ignore"):
        scales = (np.array(tilings, dtype=np.float32) * np.float32(window) / size).min(axis=1)
    if (scales < 1).all():
        return tilings[int(scales.argmax())]
    return tilings[int(np.where(scales < 1, np.float32(10e9), scales).argmin())]


def select_fill_tiling(height: int, width: int, tier: FillTier) -> tuple[int, int]:
    """Rows and columns of the fill tiling: the closest aspect ratio, preferred counts first."""
    counts = [
        *tier.preferred,
        *(n for n in range(tier.min_crops, tier.max_crops + 1) if n not in tier.preferred),
    ]
    best, best_error = (1, 1), math.inf
    for count in counts:
        if _is_prime_above_two(count):
            continue
        for rows in (r for r in range(1, count + 1) if count % r == 0):
            error = abs(count / rows / rows - width / height)
            if error < best_error:
                best, best_error = (rows, count // rows), error
    return best


def _is_prime_above_two(number: int) -> bool:
    return number > 2 and all(number % d for d in range(2, math.isqrt(number) + 1))


def resize(image_HW3: NDArray[np.uint8], height: int, width: int) -> Pixels:
    """Antialiased bilinear resize in float32, clipped to [0, 1]."""
    x = torch.tensor(image_HW3).permute(2, 0, 1)[None].float() / 255
    x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)
    return x[0].clamp(0, 1).permute(1, 2, 0).numpy()


def letterbox(image_HW3: NDArray[np.uint8], height: int, width: int) -> tuple[Pixels, Pixels]:
    """Scales to fit and pads in the middle: normalised pixels [H, W, 3] and valid mask [H, W]."""
    source_h, source_w = (np.float32(n) for n in image_HW3.shape[:2])
    scale = min(np.float32(width) / source_w, np.float32(height) / source_h)
    inner_h, inner_w = max(int(source_h * scale), 1), max(int(source_w * scale), 1)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    pixels = np.zeros((height, width, 3), dtype=np.float32)
    mask = np.zeros((height, width), dtype=np.float32)
    inner = (slice(top, top + inner_h), slice(left, left + inner_w))
    pixels[inner] = resize(image_HW3, inner_h, inner_w)
    mask[inner] = 1
    return (pixels - CLIP_MEAN) / CLIP_STD, mask


def fill(image_HW3: NDArray[np.uint8], height: int, width: int) -> tuple[Pixels, Pixels]:
    """Scales to cover and cuts the middle out: normalised pixels [H, W, 3] and valid mask [H, W].

    A source so narrow that covering would enlarge it beyond any use is cut to the canvas' aspect
    ratio first, so that memory stays bounded.
    """
    source_h, source_w = image_HW3.shape[:2]
    scale = max(height / source_h, width / source_w)
    if source_h * source_w * scale**2 > MAX_COVER_RATIO * height * width:
        keep_h = min(source_h, math.ceil(height / scale))
        keep_w = min(source_w, math.ceil(width / scale))
        top, left = (source_h - keep_h) // 2, (source_w - keep_w) // 2
        image_HW3 = image_HW3[top : top + keep_h, left : left + keep_w]
        source_h, source_w = keep_h, keep_w
    if height / source_h >= width / source_w:
        outer_h, outer_w = height, math.ceil(source_w * scale)
    else:
        outer_h, outer_w = math.ceil(source_h * scale), width
    top, left = (outer_h - height) // 2, (outer_w - width) // 2
    pixels = resize(image_HW3, outer_h, outer_w)[top : top + height, left : left + width]
    return (pixels - CLIP_MEAN) / CLIP_STD, np.ones((height, width), dtype=np.float32)


def to_patches(pixels_HW3: Pixels, patch: int) -> Pixels:
    """[g*patch, g*patch, 3] -> [g*g, patch*patch*3], patches row-major, values (dy, dx, c)."""
    rows, cols = pixels_HW3.shape[0] // patch, pixels_HW3.shape[1] // patch
    x = pixels_HW3.reshape(rows, patch, cols, patch, 3).transpose(0, 2, 1, 3, 4)
    return x.reshape(rows * cols, -1)


def patch_means(mask_HW: Pixels, patch: int) -> Pixels:
    """[g*patch, g*patch] -> [g*g]: the valid fraction of each patch."""
    rows, cols = mask_HW.shape[0] // patch, mask_HW.shape[1] // patch
    x = mask_HW.reshape(rows, patch, cols, patch).transpose(0, 2, 1, 3)
    return x.reshape(rows * cols, -1).mean(-1)

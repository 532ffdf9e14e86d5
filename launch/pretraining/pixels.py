"""Batched image preprocessing, and the labels of patches and vision tokens.

Shapes: B scenes, C crops, P patches, X values of a patch, V vision tokens of a crop, S label points
(16 of a vision token, 4 of a patch), M boxes, N = C V, W width of the scene, H its height.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from envs.spec import Tier
from envs.tasks.render import HEIGHT, WIDTH
from rollout.molmoe import Preprocessor
from rollout.molmoe.tiling import CLIP_MEAN, CLIP_STD

TOKEN_POINTS, PATCH_POINTS = 16, 4
"""Numbers of label points of a vision token (4 x 4) and of a patch (2 x 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLayout:
    """Properties of a tier that are the same for all scenes.

    Attributes:
        canvases: (height, width, inner height, inner width) of the overview and the tiling.
        corners: top left corner of each high-resolution crop in its canvas.
        prefix_ids: BOS and the image tokens.
        masks_CP: valid fraction of each patch.
        idx_CV: position in the sequence at which each vision token is added.
        token_points_CVS: pixel of the scene under each label point of a token; -1 outside.
        patch_points_CPS: the same for each patch.
        size: side of a crop in px.
        patch: side of a patch in px.
    """

    canvases: tuple[tuple[int, int, int, int], tuple[int, int, int, int]]
    corners: tuple[tuple[int, int], ...]
    prefix_ids: Tensor
    masks_CP: Tensor
    idx_CV: Tensor
    token_points_CVS: Tensor
    patch_points_CPS: Tensor
    size: int
    patch: int


def tier_layout(preprocessor: Preprocessor, tier: Tier) -> TierLayout:
    """Derives the layout from the real preprocessor's output for a blank scene."""
    config = preprocessor.config
    size, patch = config.vision.image_size, config.vision.patch_size
    blank = Image.new("RGB", (WIDTH, HEIGHT))
    inputs = preprocessor(blank, "x", max_crops=tier.max_crops)
    assert inputs.image_masks is not None
    assert inputs.image_input_idx is not None
    margin = sum(config.overlap_margins) * patch
    window = size - margin
    rows, cols = inputs.tiling
    canvases = (_fit(size, size), _fit(window * rows + margin, window * cols + margin))
    corners = tuple((window * r, window * c) for r in range(rows) for c in range(cols))
    sides = (config.pooled_grid, config.vision.grid)
    places = ((canvases[0], (0, 0)), *((canvases[1], corner) for corner in corners))
    tokens, patches = (
        torch.from_numpy(np.stack([_label_points(*place, size, side) for place in places]))
        for side in sides
    )
    return TierLayout(
        canvases=canvases,
        corners=corners,
        prefix_ids=inputs.token_ids[: len(inputs.token_ids) - inputs.num_text_tokens],
        masks_CP=inputs.image_masks,
        idx_CV=inputs.image_input_idx,
        token_points_CVS=tokens,
        patch_points_CPS=patches,
        size=size,
        patch=patch,
    )


def _fit(height: int, width: int) -> tuple[int, int, int, int]:
    scale = min(np.float32(width) / np.float32(WIDTH), np.float32(height) / np.float32(HEIGHT))
    return height, width, int(np.float32(HEIGHT) * scale), int(np.float32(WIDTH) * scale)


def _label_points(
    canvas: tuple[int, int, int, int], corner: tuple[int, int], size: int, side: int
) -> np.ndarray:
    """Scene pixel (flat index) under the label points of each cell: [side * side, points].

    A crop has side x side cells; its points always form a 16 x 16 grid.
    """
    height, width, inner_h, inner_w = canvas
    count = 16 // side
    steps = (np.arange(16) + 0.5) * size / 16
    y = (steps + corner[0] - (height - inner_h) // 2) * HEIGHT / inner_h
    x = (steps + corner[1] - (width - inner_w) // 2) * WIDTH / inner_w
    flat = np.floor(y)[:, None] * WIDTH + np.floor(x)
    inside = ((y >= 0) & (y < HEIGHT))[:, None] & ((x >= 0) & (x < WIDTH))
    grid = np.where(inside, flat, -1).astype(np.int64)
    return grid.reshape(side, count, side, count).transpose(0, 2, 1, 3).reshape(side * side, -1)


def make_crops(images_BHW3: Tensor, layout: TierLayout) -> Tensor:
    """Converts uint8 scenes to normalised patches [B, C, P, X], as the preprocessor does."""
    pixels = images_BHW3.permute(0, 3, 1, 2).float() / 255
    overview, tiled = (_letterbox(pixels, canvas) for canvas in layout.canvases)
    crops = [overview]
    for top, left in layout.corners:
        crops.append(tiled[:, :, top : top + layout.size, left : left + layout.size])
    x = torch.stack(crops, dim=1)
    grid = layout.size // layout.patch
    x = x.unflatten(-1, (grid, layout.patch)).unflatten(-3, (grid, layout.patch))
    return x.permute(0, 1, 3, 5, 4, 6, 2).flatten(4).flatten(2, 3)


def tokens_under(boxes_M4: Tensor, layout: TierLayout, length: int) -> Tensor:
    """Mask of the first `length` tokens that show a part of each box: bool [M, length].

    The overview is excluded, because small objects cannot be read there.
    """
    points_CVS, idx_CV = layout.token_points_CVS[1:], layout.idx_CV[1:]
    y, x = points_CVS // WIDTH, points_CVS % WIDTH
    left, top, right, bottom = (edge[:, None, None, None] for edge in boxes_M4.unbind(-1))
    inside = (points_CVS >= 0) & (x >= left) & (x < right) & (y >= top) & (y < bottom)
    shown_MN = inside.any(-1).flatten(1)
    used = (idx_CV >= 0).flatten()
    out = torch.zeros(len(boxes_M4), length, dtype=torch.bool)
    out[:, idx_CV.flatten()[used]] = shown_MN[:, used]
    return out


def _letterbox(pixels: Tensor, canvas: tuple[int, int, int, int]) -> Tensor:
    height, width, inner_h, inner_w = canvas
    inner = F.interpolate(pixels, size=(inner_h, inner_w), mode="bilinear", antialias=True)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    out = torch.zeros(len(pixels), 3, height, width)
    out[:, :, top : top + inner_h, left : left + inner_w] = inner.clamp(0, 1)
    mean, std = (torch.from_numpy(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (out - mean) / std


def label_targets(labels_BHW2: Tensor, points_CPS: Tensor) -> Tensor:
    """Class and colour under each label point: int64 [B, C, P, S, 2]; 0 outside the scene."""
    flat = labels_BHW2.flatten(1, 2).long()
    found = flat[:, points_CPS.clamp(min=0).flatten()].unflatten(1, points_CPS.shape)
    return found * (points_CPS >= 0)[None, ..., None]

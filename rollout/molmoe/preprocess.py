"""Image and prompt to model inputs, bit-identical to the published preprocessing.

Shapes: T tokens, C crops (the global one first), P patches of a crop, X values of a patch,
V vision tokens of a crop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from envs.pixels import to_rgb
from envs.spec import Tier
from rollout.molmoe.config import MolmoEConfig, resolve_folder
from rollout.molmoe.tiling import (
    FILL_TIERS,
    Pixels,
    fill,
    letterbox,
    patch_means,
    select_fill_tiling,
    select_tiling,
    to_patches,
)


def staged_for(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor of the CPU, in page-locked memory if the device is a GPU.

    A copy from there needs no help from the host, so that its time is the device's own.
    """
    return tensor.pin_memory() if device.type == "cuda" else tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """One prompt, ready for the model.

    Attributes:
        token_ids: int64 [T]: BOS, image tokens, text.
        images: float32 [C, P, X], or None for text alone.
        image_masks: float32 [C, P]: valid fraction of each patch; -1 in the last row.
        image_input_idx: int64 [C, V]: where each vision token is added; negative: nowhere.
        num_vision_tokens: vision tokens that reach the decoder.
        num_text_tokens: tokens of the prompt's text, role format included.
        tiling: rows and columns of high-resolution crops; (0, 0) for text alone.
    """

    token_ids: Tensor
    images: Tensor | None
    image_masks: Tensor | None
    image_input_idx: Tensor | None
    num_vision_tokens: int
    num_text_tokens: int
    tiling: tuple[int, int]

    @property
    def text_ids(self) -> Tensor:
        """Ids of the prompt's text: int64 [num_text_tokens]."""
        return self.token_ids[len(self.token_ids) - self.num_text_tokens :]

    @property
    def num_bytes(self) -> int:
        """Memory that the tensors take."""
        tensors = (self.token_ids, self.images, self.image_masks, self.image_input_idx)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def without_global_crop(self) -> ModelInputs:
        """The same record with the pixels of all crops but the first, C - 1 in number."""
        return self if self.images is None else replace(self, images=self.images[1:])

    def without_image(self) -> ModelInputs:
        """The same record without its pixels."""
        return replace(self, images=None, image_masks=None, image_input_idx=None)

    def to(self, device: torch.device | str) -> ModelInputs:
        """The same record with its tensors on another device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def staged_for(self, device: torch.device) -> ModelInputs:
        """The same record with its tensors where `device` can copy them from; see `staged_for`."""
        return self._mapped(lambda tensor: staged_for(device, tensor))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> ModelInputs:
        if self.images is None or self.image_masks is None or self.image_input_idx is None:
            return replace(self, token_ids=change(self.token_ids))
        return replace(
            self,
            token_ids=change(self.token_ids),
            images=change(self.images),
            image_masks=change(self.image_masks),
            image_input_idx=change(self.image_input_idx),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A decoded image and its global crop, the first of its crops at every tier.

    Attributes:
        pixels: uint8 [H, W, 3], upright.
        crop: float32 [1, P, X]: the whole image, letterboxed to the encoder's size.
    """

    pixels: NDArray[np.uint8]
    crop: Tensor


class Preprocessor:
    """Turns (image, prompt) into ModelInputs for a model's sizes and tokenizer."""

    def __init__(self, config: MolmoEConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.bos = config.eos_token_id
        specials = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>")
        ids = [tokenizer.get_vocab().get(token) for token in specials]
        missing = [token for token, index in zip(specials, ids, strict=True) if index is None]
        if missing:
            raise ValueError(f"the tokenizer lacks {', '.join(missing)}: is it a MolmoE tokenizer?")
        self.im_start, self.im_end, self.im_patch, self.im_col = (int(index or 0) for index in ids)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Preprocessor:
        """Reads tokenizer.json and config.json; raises ValueError if they are unusable."""
        folder = resolve_folder(source)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing: is this a MolmoE folder?")
        try:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        except Exception as error:  # the tokenizers library raises bare Exception
            message = f"{path} is not a tokenizer file ({error}): download it again"
            raise ValueError(message) from None
        return cls(MolmoEConfig.from_folder(folder), tokenizer)

    def __call__(
        self, image: Image.Image | None, prompt: str, max_crops: int | None = None
    ) -> ModelInputs:
        """Letterbox tiling with at most `max_crops` crops.

        Args:
            image: any PIL image, or None for text alone.
            prompt: the user's text; the role format is added here.
            max_crops: maximum number of high-resolution crops; by default the model's.

        Raises:
            ValueError: the prompt is empty, the image unreadable, or max_crops below 1.
        """
        return self.tiled(self.overview(image), prompt, max_crops)

    def overview(self, image: Image.Image | None) -> Overview | None:
        """Decodes an image and makes its global crop; raises ValueError if it is unreadable."""
        if image is None:
            return None
        pixels, size = to_rgb(image), self.config.vision.image_size
        patches = to_patches(self._resized(pixels, size, size)[0], self.config.vision.patch_size)
        return Overview(pixels=pixels, crop=torch.from_numpy(patches[None]))

    def tiled(
        self, overview: Overview | None, prompt: str, max_crops: int | None = None
    ) -> ModelInputs:
        """As `__call__`, for an image that is already decoded."""
        text_ids = self.encode_prompt(prompt)
        if overview is None:
            return self._assemble(text_ids, None, (0, 0))
        max_crops = self.config.max_crops if max_crops is None else max_crops
        if max_crops < 1:
            raise ValueError(f"max_crops is {max_crops}: allow at least one crop")
        tiling = self._tiling(overview.pixels, max_crops)
        high = letterbox(overview.pixels, *self._canvas(tiling))
        return self._assemble(text_ids, (overview.crop.numpy()[0], *high), tiling)

    def at_tier(self, overview: Overview | None, prompt: str, tier: Tier) -> ModelInputs:
        """The inputs at an image tier, for an image that is already decoded.

        Raises:
            ValueError: the prompt is empty.
        """
        return self.tiled(overview, prompt, tier.max_crops)

    def tiling_at(self, overview: Overview, tier: Tier) -> tuple[int, int]:
        """Rows and columns of an image's crops at a tier, by its height and width alone."""
        return self._tiling(overview.pixels, tier.max_crops)

    def num_vision_tokens(self, overview: Overview | None, tier: Tier) -> int:
        """Number of an image's vision tokens at a tier; 0 without an image."""
        if overview is None:
            return 0
        rows, cols = self._pooled_canvas(self.tiling_at(overview, tier))
        return self.config.pooled_grid**2 + rows * cols

    def encode_prompt(self, prompt: str) -> NDArray[np.int64]:
        """Token ids of " User: {prompt} Assistant:"; raises ValueError for an empty prompt."""
        if not prompt.strip():
            raise ValueError("the prompt is empty: ask a question")
        ids = self.tokenizer.encode(f" User: {prompt} Assistant:", add_special_tokens=False)
        return np.array(ids, dtype=np.int64)

    def decode(self, token_ids: list[int]) -> str:
        """The answer's text, without special tokens and surrounding space."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()

    @property
    def max_crops(self) -> int:
        """The largest number of an image's crops."""
        return self.config.max_crops

    _resized = staticmethod(letterbox)
    """Brings an image to the size of a canvas."""

    @property
    def _margin(self) -> int:
        return sum(self.config.overlap_margins)

    @property
    def _window(self) -> int:
        """Stride of the crops in pixels."""
        vision = self.config.vision
        return (vision.grid - self._margin) * vision.patch_size

    def _tiling(self, pixels: NDArray[np.uint8], max_crops: int) -> tuple[int, int]:
        margin = self._margin * self.config.vision.patch_size
        height, width = pixels.shape[0] - margin, pixels.shape[1] - margin
        return select_tiling(height, width, self._window, max_crops)

    def _pooled_canvas(self, tiling: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the vision tokens of all crops but the global one."""
        dropped = sum(margin // 2 for margin in self.config.overlap_margins)
        stride = self.config.pooled_grid - dropped
        return stride * tiling[0] + dropped, stride * tiling[1] + dropped

    def _canvas(self, tiling: tuple[int, int]) -> tuple[int, int]:
        margin = self._margin * self.config.vision.patch_size
        return self._window * tiling[0] + margin, self._window * tiling[1] + margin

    def _assemble(
        self,
        text_ids: NDArray[np.int64],
        pixels: tuple[Pixels, Pixels, Pixels] | None,
        tiling: tuple[int, int],
    ) -> ModelInputs:
        if pixels is None:
            return ModelInputs(
                token_ids=torch.from_numpy(np.append(np.int64(self.bos), text_ids)),
                images=None,
                image_masks=None,
                image_input_idx=None,
                num_vision_tokens=0,
                num_text_tokens=len(text_ids),
                tiling=tiling,
            )
        images, masks = self._crops(*pixels, tiling)
        image_ids, idx = self._image_tokens(tiling)
        ids = np.concatenate([[self.bos], image_ids, text_ids])
        return ModelInputs(
            token_ids=torch.from_numpy(ids),
            images=torch.from_numpy(images),
            image_masks=torch.from_numpy(masks),
            image_input_idx=torch.from_numpy(idx),
            num_vision_tokens=int((idx >= 0).sum()),
            num_text_tokens=len(text_ids),
            tiling=tiling,
        )

    def _crops(
        self, overview_PX: Pixels, high: Pixels, high_mask: Pixels, tiling: tuple[int, int]
    ) -> tuple[Pixels, Pixels]:
        """Patches [C, P, X], overview first; valid fractions [C, P], overview's -1 row LAST.

        That the two orders differ is the published behaviour, on which the weights were trained.
        """
        size, patch = self.config.vision.image_size, self.config.vision.patch_size
        images, masks = [overview_PX], []
        for row in range(tiling[0]):
            for col in range(tiling[1]):
                top, left = row * self._window, col * self._window
                area = (slice(top, top + size), slice(left, left + size))
                images.append(to_patches(high[area], patch))
                masks.append(patch_means(high_mask[area], patch))
        masks.append(np.full_like(masks[0], -1))
        return np.stack(images), np.stack(masks)

    def _image_tokens(self, tiling: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of the image tokens, and where in the sequence each vision token is added [C, V]."""
        side = self.config.pooled_grid
        left_drop, right_drop = (margin // 2 for margin in self.config.overlap_margins)
        stride = side - left_drop - right_drop
        rows, cols = self._pooled_canvas(tiling)
        ids, idx = [], []
        for height, width in ((side, side), (rows, cols)):
            # After BOS, the parts before this one and im_start.
            start = 2 + sum(map(len, ids))
            grid = np.arange(height)[:, None] * (width + 1) + np.arange(width) + start
            line = [self.im_patch] * width + [self.im_col]
            ids.append(np.array([self.im_start, *(line * height), self.im_end], dtype=np.int64))
            idx.append(grid)
        all_idx = [idx[0].ravel()]
        for row in range(tiling[0]):
            for col in range(tiling[1]):
                top, left = row * stride, col * stride
                crop = np.full((side, side), -100, dtype=np.int64)
                keep_y = _kept(row, tiling[0], side, left_drop, right_drop)
                keep_x = _kept(col, tiling[1], side, left_drop, right_drop)
                full = idx[1][top : top + side, left : left + side]
                crop[keep_y, keep_x] = full[keep_y, keep_x]
                all_idx.append(crop.ravel())
        return np.concatenate(ids), np.stack(all_idx)


def _kept(index: int, count: int, side: int, first_drop: int, last_drop: int) -> slice:
    """Pooled rows (or columns) that crop `index` of `count` keeps: all at the image's edges."""
    return slice(0 if index == 0 else first_drop, side if index == count - 1 else side - last_drop)


class CoveringPreprocessor(Preprocessor):
    """Covers the crops with the image instead of letterboxing it.

    The study that first measured these knobs on MolmoE-1B-0924 cut images in this way, with up to
    15 crops at the high tier.
    """

    _resized = staticmethod(fill)

    @property
    def max_crops(self) -> int:
        """The largest number of an image's crops."""
        return max(tier.max_crops for tier in FILL_TIERS.values())

    def at_tier(self, overview: Overview | None, prompt: str, tier: Tier) -> ModelInputs:
        """The inputs at an image tier; see `Preprocessor.at_tier`."""
        text_ids = self.encode_prompt(prompt)
        if overview is None:
            return self._assemble(text_ids, None, (0, 0))
        tiling = self.tiling_at(overview, tier)
        high = fill(overview.pixels, *self._canvas(tiling))
        return self._assemble(text_ids, (overview.crop.numpy()[0], *high), tiling)

    def tiling_at(self, overview: Overview, tier: Tier) -> tuple[int, int]:
        """See `Preprocessor.tiling_at`."""
        height, width, _ = overview.pixels.shape
        return select_fill_tiling(height, width, FILL_TIERS[tier.name.lower()])


PREPROCESSORS = {"letterbox": Preprocessor, "fill": CoveringPreprocessor}
"""By the name of their tiling."""

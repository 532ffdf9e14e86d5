"""What stage 1 sees besides words: the mean over the patches of the global crop, and sizes.

Only the first of the encoder's selected layers is averaged. On the embedded tasks no other pooling,
and no pair of poolings, better predicts the tier that a question needs
(`python -m studies.image_feature`).

The sizes decide what a tier costs on this image, which is known from its width and height alone.

Shapes: P patches of a crop, E encoder width, F = E x selected layers, I = E + NUM_SIZES + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from envs.spec import NUM_SIZES
from rollout.molmoe import MolmoEConfig

LOG_TYPICAL = 6.0
"""Logarithm of a typical number of tokens, which is taken off the sizes."""


def image_dim(config: MolmoEConfig) -> int:
    """Length of the image feature, I."""
    return config.vision.dim + NUM_SIZES + 1


def pooled(features_11PF: Tensor, config: MolmoEConfig) -> Tensor:
    """The mean patch [E] of a crop."""
    return features_11PF[0, 0, :, : config.vision.dim].float().mean(0)


def sizes_of(num_vision_tokens: Sequence[int], num_text_tokens: int) -> list[float]:
    """The sizes: of the vision tokens at each tier, zero without an image, and of the prompt."""
    counts = (*num_vision_tokens, num_text_tokens)
    return [math.log(count) - LOG_TYPICAL if count else 0.0 for count in counts]

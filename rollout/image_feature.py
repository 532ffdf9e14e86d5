"""What stage 1 sees of an image: the mean over the patches of its global crop.

Only the first of the encoder's selected layers is averaged. On the embedded tasks no other pooling,
and no pair of poolings, better predicts the tier that a question needs
(`python -m studies.image_feature`).

Shapes: P patches of a crop, E encoder width, F = E x selected layers, I = E + 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rollout.molmoe import MolmoEConfig


def image_dim(config: MolmoEConfig) -> int:
    """Length of the image feature, I."""
    return config.vision.dim + 1


def pooled(features_PF: Tensor, config: MolmoEConfig) -> Tensor:
    """The image feature [I] of a crop's features: the mean patch, and 1 for 'there is an image'."""
    mean_E = features_PF[:, : config.vision.dim].float().mean(0)
    return F.pad(mean_E, (0, 1), value=1.0)

"""Stage 1: language, budget and image to image tier and insertion position.

Shapes: B episodes, D d_model, I length of the image feature, 3 tiers, 5 positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs.spec import NUM_SIZES, STAGE1_SIZES
from policy.config import ControllerConfig
from policy.layers import Linear, Module, gelu, normalised

HEAD_INIT_STD = 0.01


Stage1Logits = tuple[Tensor, ...]
"""Logits by choice index of the heads that decide before the tier's crops are encoded, in the order
of `envs.spec.STAGE1_HEADS`."""


NUM_PLAIN = NUM_SIZES + 1
"""Values at the end of an image feature that are not normalised: the sizes, and 1 or 0 for whether
there is an image."""


class ImageProjection(Module):
    """Projects an image feature, whose pooled part is normalised."""

    def __init__(self, image_dim: int, width: int):
        super().__init__()
        self.linear = Linear(image_dim, width)

    def forward(self, image_feature_BI: Tensor) -> Tensor:
        """[B, I] -> [B, width]."""
        pooled, plain = image_feature_BI[:, :-NUM_PLAIN], image_feature_BI[:, -NUM_PLAIN:]
        return self.linear(torch.cat((normalised(pooled), plain), dim=-1))


class Stage1(Module):
    """A small MLP; each wide input is first normalised and projected down.

    The inputs may have any scale: LayerNorm without weights (the projection has them) removes
    it. The heads start small, so that the initial policy is near uniform.
    """

    def __init__(self, config: ControllerConfig):
        super().__init__()
        width = config.projection_dim
        self.language = Linear(config.d_model, width)
        self.budget = Linear(config.d_model, width)
        self.image = ImageProjection(config.image_dim, width) if config.sees_image else None
        self.hidden = Linear((2 + config.sees_image) * width, config.hidden_dim)
        self.heads = Linear(config.hidden_dim, sum(STAGE1_SIZES))
        nn.init.normal_(self.heads.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(self.heads.bias)

    def forward(
        self,
        language_feature_BD: Tensor,
        budget_token_BD: Tensor,
        image_feature_BI: Tensor | None = None,
    ) -> Stage1Logits:
        """Returns the logits of stage 1's heads: tier [B, 3] and position [B, 5]."""
        projected = [
            self.language(normalised(language_feature_BD)),
            self.budget(normalised(budget_token_BD)),
        ]
        if self.image is not None:
            assert image_feature_BI is not None, "this controller sees the image: give its feature"
            projected.append(self.image(image_feature_BI))
        hidden = gelu(self.hidden(gelu(torch.cat(projected, dim=-1))))
        return self.heads(hidden).split_with_sizes(STAGE1_SIZES, dim=-1)

"""Stage 1: language, budget and image to image tier and insertion position.

Shapes: B episodes, D d_model, I length of the image feature, 3 tiers, 5 positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from envs.spec import STAGE1_SIZES
from policy.config import ControllerConfig

HEAD_INIT_STD = 0.01


Stage1Logits = tuple[Tensor, ...]
"""Logits by choice index of the heads that decide before the tier's crops are encoded, in the order
of `envs.spec.STAGE1_HEADS`."""


class ImageProjection(nn.Module):
    """Projects a normalised image feature; its last value, 1 or 0, says whether there is one."""

    def __init__(self, image_dim: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(image_dim - 1, elementwise_affine=False)
        self.linear = nn.Linear(image_dim, width)

    def forward(self, image_feature_BI: Tensor) -> Tensor:
        """[B, I] -> [B, width]."""
        pooled, flag = image_feature_BI[:, :-1], image_feature_BI[:, -1:]
        return self.linear(torch.cat((self.norm(pooled), flag), dim=-1))


class Stage1(nn.Module):
    """A small MLP; each wide input is first normalised and projected down.

    The inputs may have any scale: LayerNorm without weights (the projection has them) removes
    it. The heads start small, so that the initial policy is near uniform.
    """

    def __init__(self, config: ControllerConfig):
        super().__init__()
        width = config.projection_dim
        self.norm = nn.LayerNorm(config.d_model, elementwise_affine=False)
        self.language = nn.Linear(config.d_model, width)
        self.budget = nn.Linear(config.d_model, width)
        self.image = ImageProjection(config.image_dim, width) if config.sees_image else None
        self.hidden = nn.Linear((2 + config.sees_image) * width, config.hidden_dim)
        self.heads = nn.Linear(config.hidden_dim, sum(STAGE1_SIZES))
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
            self.language(self.norm(language_feature_BD)),
            self.budget(self.norm(budget_token_BD)),
        ]
        if self.image is not None:
            assert image_feature_BI is not None, "this controller sees the image: give its feature"
            projected.append(self.image(image_feature_BI))
        hidden = nn.functional.gelu(self.hidden(nn.functional.gelu(torch.cat(projected, dim=-1))))
        return self.heads(hidden).split(STAGE1_SIZES, dim=-1)

"""Image encoder, 2x2 attention pooling and projector.

Shapes: N batch, C crops, P patches of a crop, V vision tokens of a crop, S = P + 1 with CLS,
E encoder width, F = E x selected layers, D d_model, X values of one flattened patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollout.molmoe.attention import wide
from rollout.molmoe.config import MolmoEConfig, VisionConfig


def attend_float32(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention in float32, as `float32_attention` asks: [B, Tq, E] -> [B, Tq, E]."""
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(wide(q), wide(k), wide(v))
    return out.to(v.dtype).transpose(1, 2).flatten(2)


class VisionAttention(nn.Module):
    """Attention with separate projections and biases; `in_dim` may differ from `dim`."""

    def __init__(self, in_dim: int, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wq = nn.Linear(in_dim, dim)
        self.wk = nn.Linear(in_dim, dim)
        self.wv = nn.Linear(in_dim, dim)
        self.wo = nn.Linear(dim, dim)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """[B, Tq, in_dim] attends over [B, Tk, in_dim] -> [B, Tq, dim]."""
        q, k, v = self.wq(query), self.wk(context), self.wv(context)
        return self.wo(attend_float32(q, k, v, self.num_heads))


class VisionMLP(nn.Module):
    """Linear, quick GELU, linear."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.mlp_dim)
        self.w2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        x = self.w1(x)
        return self.w2(x * torch.sigmoid(1.702 * x))


class VisionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention = VisionAttention(config.dim, config.dim, config.num_heads)
        self.feed_forward = VisionMLP(config)
        self.attention_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(self, x_BSE: Tensor) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        normed = self.attention_norm(x_BSE)
        x_BSE = x_BSE + self.attention(normed, normed)
        return x_BSE + self.feed_forward(self.ffn_norm(x_BSE))


class VisionTransformer(nn.Module):
    """CLIP-style encoder over flattened patches; blocks after the last selected one never run."""

    def __init__(self, config: VisionConfig, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.selected = tuple(layer % config.num_layers for layer in layers)
        self.class_embedding = nn.Parameter(torch.zeros(config.dim))
        self.positional_embedding = nn.Parameter(torch.zeros(config.grid**2 + 1, config.dim))
        self.patch_embedding = nn.Linear(config.patch_dim, config.dim, bias=False)
        self.pre_ln = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.resblocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_layers))

    def forward(self, patches_BPX: Tensor) -> Tensor:
        """[B, P, X] -> [B, P, F]: outputs of the selected blocks side by side, without CLS."""
        x = self.patch_embedding(patches_BPX)
        cls = self.class_embedding.expand(len(x), 1, -1)
        x = self.pre_ln(torch.cat([cls, x], dim=1) + self.positional_embedding)
        outputs: dict[int, Tensor] = {}
        for index in range(max(self.selected) + 1):
            x = self.resblocks[index](x)
            if index in self.selected:
                outputs[index] = x[:, 1:]
        return torch.cat([outputs[index] for index in self.selected], dim=-1)


class Projector(nn.Module):
    """SwiGLU projector from the pooled features to d_model."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        dim, hidden = config.vision.dim, config.expert_hidden
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, config.d_model, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., D]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class ImageEncoder(nn.Module):
    """Everything before the projector: encoder, padding embedding, pooling."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        vision = config.vision
        feature_dim = vision.dim * len(config.vit_layers)
        self.grid = vision.grid
        self.image_vit = VisionTransformer(vision, config.vit_layers)
        self.pad_embed = nn.Parameter(torch.zeros(2, feature_dim))
        self.image_pooling_2d = VisionAttention(feature_dim, vision.dim, vision.num_heads)

    def forward(self, images_NCPX: Tensor, masks_NCP: Tensor) -> Tensor:
        """[N, C, P, X] pixels and [N, C, P] valid fractions -> [N, C, V, E] pooled features."""
        return self.pool(self.crop_features(images_NCPX), masks_NCP)

    def crop_features(self, images_NCPX: Tensor) -> Tensor:
        """[N, C, P, X] pixels -> [N, C, P, F]: each crop by itself, as the encoder sees it.

        A crop of padding only (all -1) yields zeros.
        """
        n, c = images_NCPX.shape[:2]
        images_NCPX = images_NCPX.to(self.pad_embed.dtype)
        features = self.image_vit(images_NCPX.flatten(0, 1)).unflatten(0, (n, c))
        is_padding = (images_NCPX == -1).flatten(2).all(-1)
        return features.masked_fill(is_padding[..., None, None], 0)

    def pool(self, features_NCPF: Tensor, masks_NCP: Tensor) -> Tensor:
        """[N, C, P, F] features and [N, C, P] valid fractions -> [N, C, V, E] pooled features."""
        n, c = features_NCPF.shape[:2]
        empty = masks_NCP == 0
        partial = (masks_NCP < 1) & ~empty
        features_NCPF = features_NCPF + empty[..., None] * self.pad_embed[0]
        features_NCPF = features_NCPF + partial[..., None] * self.pad_embed[1]
        windows = self._windows(features_NCPF.flatten(0, 1))
        pooled = self.image_pooling_2d(windows.mean(1, keepdim=True), windows)
        return pooled.view(n, c, -1, pooled.shape[-1])

    def _windows(self, features_BPF: Tensor) -> Tensor:
        """[B, P, F] -> [B * V, 4, F]: the 2x2 windows in row-major order."""
        half = self.grid // 2
        x = features_BPF.unflatten(1, (half, 2, half, 2)).transpose(2, 3)
        return x.reshape(-1, 4, features_BPF.shape[-1])


class VisionBackbone(nn.Module):
    """Image encoder and projector."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        self.encoder = ImageEncoder(config)
        self.projector = Projector(config)

    def forward(self, images_NCPX: Tensor, masks_NCP: Tensor) -> Tensor:
        """[N, C, P, X] pixels and [N, C, P] valid fractions -> [N, C, V, D] vision tokens."""
        return self.projector(self.encoder(images_NCPX, masks_NCP))

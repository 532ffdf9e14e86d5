"""Muon for stacks of matrices (Jordan et al., 2024), AdamW for everything else.

`torch.optim.Muon` accepts only two-dimensional weights; the experts are stacks [E, out, in].

Shapes: N matrices of R rows and C columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from launch.pretraining.config import OptimizerConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def product_dtype() -> torch.dtype:
    """bfloat16 if this CPU multiplies it in hardware, else float32, which is then far faster."""
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32


def orthogonalize(stack_NRC: Tensor, steps: int = 4) -> Tensor:
    """Newton-Schulz iteration, which moves the singular values of each matrix close to one."""
    a, b, c = COEFFICIENTS
    x = stack_NRC.to(product_dtype())
    tall = x.shape[-2] > x.shape[-1]
    x = x.transpose(-1, -2) if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.transpose(-1, -2) if tall else x).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixView:
    """Splits a weight into independent matrices: [..., R, C] -> [N, R / parts, C]."""

    parts: int = 1

    def stack(self, weight: Tensor) -> Tensor:
        """The weight as a stack of matrices."""
        rows, cols = weight.shape[-2:]
        return weight.reshape(-1, rows // self.parts, cols)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum; a group's `parts` is the number of matrices in a fused weight."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all weights that have gradients."""
        assert closure is None
        for group in self.param_groups:
            view = MatrixView(parts=group["parts"])
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(state["momentum"], group["momentum"])
                update = orthogonalize(view.stack(ahead))
                scale = max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update.reshape(weight.shape), alpha=group["lr"] * scale)


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether Muon trains this weight; vectors, embeddings, router and heads are left to AdamW."""
    excluded = ("embedding", "lm_head", "mlp.gate.", "pad_embed", "class_head", "color_head")
    if "patch_embedding" in name:
        return True
    return weight.ndim >= 2 and not any(part in name for part in excluded)


def fused_parts(name: str) -> int:
    """Number of matrices fused in one weight: 3 for q, k, v; 2 for gate and up of each expert."""
    if name.endswith("att_proj.weight"):
        return 3
    return 2 if name.endswith("gate_up") else 1


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> tuple[Muon, torch.optim.AdamW]:
    """Both optimizers; each group stores its peak learning rate under "peak" for the schedule."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        share = 1.0
        if ".vision." in f".{name}":
            share = config.vision_share
        elif ".attn." in name:
            share = config.attention_share
        if is_matrix(name, weight):
            peak = config.muon_lr * share
            matrices.append(
                {"params": [weight], "parts": fused_parts(name), "lr": peak, "peak": peak}
            )
        else:
            peak = config.adam_lr * share
            others.append({"params": [weight], "lr": peak, "peak": peak})
    muon = Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay)
    adam = torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return muon, adam

"""One token's experts in two Triton kernels, which read each chosen weight once and copy none.

A candidate for the decode step, not used there: it has not been measured on a GPU yet, and it needs
a C compiler. `TRITON_INTERPRET=1` runs it on a CPU.

Shapes: D d_model, H expert width, k experts per token.
"""

# Triton comes with torch for CUDA only, and its kernels are launched by subscripts.
# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 8
"""Outputs of one program."""

COLUMNS = 512
"""Inputs that a program reads at a time."""


@triton.jit
def _hidden_kernel(
    x_D,
    weights_k,
    experts_k,
    gate_up,
    hidden_kH,
    D: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program for some rows of one expert: their gate and up products, and the activations."""
    slot = tl.program_id(0)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    start_of_rows = gate_up + tl.load(experts_k + slot) * 2 * H * D + rows[:, None] * D
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, D, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)[None, :]
        x = tl.load(x_D + columns).to(tl.float32)
        gate += tl.load(start_of_rows + columns).to(tl.float32) * x
        up += tl.load(start_of_rows + H * D + columns).to(tl.float32) * x
    gate_sum, up_sum = tl.sum(gate, 1), tl.sum(up, 1)
    weight = tl.load(weights_k + slot).to(tl.float32)
    tl.store(hidden_kH + slot * H + rows, gate_sum * tl.sigmoid(gate_sum) * up_sum * weight)


@triton.jit
def _down_kernel(
    hidden_kH,
    experts_k,
    down,
    out_D,
    D: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program for some outputs, summed over all chosen experts."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for slot in range(K):
        start_of_rows = down + tl.load(experts_k + slot) * D * H + rows[:, None] * H
        for start in range(0, H, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)[None, :]
            hidden = tl.load(hidden_kH + slot * H + columns)
            total += tl.load(start_of_rows + columns).to(tl.float32) * hidden
    tl.store(out_D + rows, tl.sum(total, 1).to(out_D.dtype.element_ty))


def fused_experts(
    x_1D: Tensor, weights_1k: Tensor, experts_1k: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """As `rollout.molmoe.moe.gathered_experts`; D and H are multiples of ROWS and of powers of two.

    Sums are float32 from the first product to the last, so that results differ in rounding.
    """
    (_, D, H), k = down.shape, experts_1k.shape[1]
    hidden_kH = torch.empty(k, H, dtype=torch.float32, device=x_1D.device)
    out_1D = torch.empty_like(x_1D)
    _hidden_kernel[(k, H // ROWS)](
        x_1D, weights_1k, experts_1k, gate_up, hidden_kH, D, H, ROWS, _columns(D)
    )
    _down_kernel[(D // ROWS,)](hidden_kH, experts_1k, down, out_1D, D, H, k, ROWS, _columns(H))
    return out_1D


def _columns(width: int) -> int:
    """The largest power of two that divides a width, up to COLUMNS."""
    return min(width & -width, COLUMNS)

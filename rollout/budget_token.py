"""The budget token's path through the blocks of a kept prefix, and its vector-Jacobian product.

In an episode the budget token is the last row of the prefill. It reads the text's keys and values
and no text token reads its own, so its path can be repeated alone, on the text's cache, at any
time. For the gradient, the keys and values are constants: only the one token is differentiated.

Shapes: D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rollout.molmoe import MolmoE
from rollout.molmoe.cache import KVCache


def token_states(
    model: MolmoE, cache: KVCache, budget_token_D: Tensor, depth: int
) -> Iterator[Tensor]:
    """The hidden state [D] of a budget token after each of the first `depth` blocks.

    Args:
        model: the frozen model.
        cache: the text's keys and values in these blocks; stays as it is.
        budget_token_D: what enters block 0.
        depth: blocks to run.
    """
    y_11D = budget_token_D[None, None]
    for index in range(depth):
        y_11D = model.run_blocks(y_11D, index, index + 1, cache=cache, store=False)
        yield y_11D[0, 0]


def budget_token_vjp(
    model: MolmoE, cache: KVCache, budget_token_D: Tensor, gradients: dict[int, np.ndarray]
) -> np.ndarray:
    """Vector-Jacobian product from latency tokens back to the budget token.

    Args:
        model: the frozen model.
        cache: the text's keys and values, at least as deep as the deepest position.
        budget_token_D: what entered block 0.
        gradients: dL/d(latency token) [D] by insertion position.

    Returns:
        dL/d(budget token), [D], in the gradients' dtype.
    """
    outputs, upstream, depth = [], [], max(gradients)
    with torch.inference_mode(False), torch.enable_grad():
        # Autograd keeps no tensor that was made in inference mode: copies stand in for them.
        leaf = budget_token_D.clone().requires_grad_()
        cache = cache.fork(cache.length(0), range(depth))
        for position, y_D in enumerate(token_states(model, cache, leaf, depth), start=1):
            if position in gradients:
                outputs.append(y_D)
                upstream.append(torch.from_numpy(gradients[position]).to(y_D))
        (result,) = torch.autograd.grad(outputs, leaf, upstream)
    dtype = next(iter(gradients.values())).dtype
    return result.cpu().to(torch.float64).numpy().astype(dtype)

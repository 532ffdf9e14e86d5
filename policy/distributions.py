"""Categorical arithmetic on masked logits, pure and without distribution objects.

A masked choice has the logit -inf: its probability is exactly zero, and neither values nor
gradients of the functions below become NaN because of it.

Shapes: B rows, H heads, K choices of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def log_probs_of(log_distribution_BK: Tensor, choices_B: Tensor) -> Tensor:
    """Log-probability [B] of one choice per row."""
    return log_distribution_BK.gather(-1, choices_B.unsqueeze(-1)).squeeze(-1)


def entropy(log_distribution_BK: Tensor) -> Tensor:
    """Entropy [B] in nats, over the allowed choices."""
    finite_BK = log_distribution_BK.masked_fill(log_distribution_BK == -torch.inf, 0.0)
    return -(log_distribution_BK.exp() * finite_BK).sum(-1)


def kl_divergence(log_distribution_BK: Tensor, log_reference_BK: Tensor) -> Tensor:
    """Exact KL(distribution || reference) [B] in nats; both must have the same mask."""
    masked_BK = log_distribution_BK == -torch.inf
    log_ratio_BK = log_distribution_BK.masked_fill(masked_BK, 0.0) - log_reference_BK.masked_fill(
        masked_BK, 0.0
    )
    return (log_distribution_BK.exp() * log_ratio_BK).sum(-1)


def sample(logits: Sequence[Tensor], generators: Sequence[torch.Generator]) -> Tensor:
    """Samples one choice per row and head, [B, H], row b from generators[b] alone (Gumbel-max).

    A row's choices depend on its logits and its own generator only, so they do not change with
    the other rows. The noise is drawn on the generators' device, for all heads as for the widest.

    Args:
        logits: [B, K] for each head, or [1, K] for all rows.
        generators: one for each row.
    """
    shape = len(logits), max(head.shape[-1] for head in logits)
    noise = [
        torch.empty(shape, device=generator.device).exponential_(generator=generator)
        for generator in generators
    ]
    log_noise_BHK = torch.stack(noise).log().to(logits[0].device)
    chosen = [
        (head - log_noise_BHK[:, index, : head.shape[-1]]).argmax(-1, keepdim=True)
        for index, head in enumerate(logits)
    ]
    return torch.cat(chosen, dim=-1)

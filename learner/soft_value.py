"""The objective of a stage whose choices have known gains: expected gain plus entropy.

Its maximum over the two independent heads of a stage is the distribution nearest to
softmax(gain / temperature) by the Kullback-Leibler divergence.

Shapes: M and N choices of the two heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from policy.distributions import entropy

MAX_SHORTFALL = 1.0
"""Maximum difference in gain to the best choice that counts: one correct answer."""


def shortfall(gains_BAPKN: Tensor) -> Tensor:
    """Each configuration's gain relative to the best one of its example, at least -1."""
    best_B = gains_BAPKN.flatten(1).amax(1)
    return (gains_BAPKN - best_B[:, None, None, None, None]).clamp(min=-MAX_SHORTFALL)


def soft_value(
    first_logits: Tensor, second_logits: Tensor, gains: Tensor, temperature: float
) -> Tensor:
    """Expected gain of two independent choices, plus their entropy weighted by the temperature.

    Args:
        first_logits: [..., M].
        second_logits: [..., N]; -inf where masked.
        gains: [..., M, N], finite.
        temperature: weight of the entropy, in units of the gains; at 0 only the gain counts.

    Returns:
        [...].
    """
    first, second = first_logits.log_softmax(-1), second_logits.log_softmax(-1)
    expected = torch.einsum("...m,...n,...mn->...", first.exp(), second.exp(), gains)
    return expected + temperature * (entropy(first) + entropy(second))

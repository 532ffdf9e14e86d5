"""What the policy ascends where the worth of every configuration is known or modelled.

The expectation over a stage's choices is exact, because it is a sum over all of them. To it comes
an entropy bonus: its maximum over the two independent heads of a stage is the distribution nearest
to softmax(gain / temperature) by the Kullback-Leibler divergence.

Shapes: B samples, R prefixes, A = 3 tiers, P = 5 positions, K = 5 top_ks, N = 5 num_blocks; M and N
choices of the two heads of one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase
from typing import NamedTuple

import torch
from torch import Tensor

from envs.spec import HEAD_SIZES, STAGE1_SIZES
from policy.distributions import entropy
from policy.stage1 import Stage1Logits
from policy.stage2 import Stage2Logits

MAX_LOSS = 1.0
"""Maximum loss against the best configuration that counts: one right answer."""


class Gains(NamedTuple):
    """The worth of every configuration, relative to the best one of its sample.

    Attributes:
        best_B: worth of the best configuration.
        relative_BAPKN: worth less that of the best, between -1 and 0; masked ones have -1.
    """

    best_B: Tensor
    relative_BAPKN: Tensor

    @classmethod
    def of(cls, worth_BAPKN: Tensor) -> Gains:
        """From expected rewards; -inf where masked or unknown."""
        best_B = worth_BAPKN.flatten(1).amax(1)
        relative_BAPKN = worth_BAPKN - best_B.view(-1, *(1 for _ in HEAD_SIZES))
        return cls(best_B, relative_BAPKN.clamp(min=-MAX_LOSS))

    @property
    def relative_BAP(self) -> Tensor:
        """The same for tier and position, each followed by the best choices of stage 2."""
        return self.relative_BAPKN.flatten(1 + len(STAGE1_SIZES)).amax(-1)


def soft_value(logits: Sequence[Tensor], gains: Tensor, temperature: float) -> Tensor:
    """Expected gain of independent choices, plus their entropy weighted by the temperature.

    Args:
        logits: [..., K] of each head of a stage; -inf where masked.
        gains: [..., M, N] for heads of M and N choices, finite.
        temperature: weight of the entropy, in units of the gains; at 0 only the gain counts.

    Returns:
        [...].
    """
    log_probs = [head.log_softmax(-1) for head in logits]
    axes = ascii_lowercase[: len(log_probs)]
    terms = ",".join(f"...{axis}" for axis in (*axes, axes))
    expected = torch.einsum(f"{terms}->...", *(head.exp() for head in log_probs), gains)
    return expected + temperature * sum(map(entropy, log_probs), gains.new_zeros(()))


def value_of_stages(
    stage1: Stage1Logits,
    stage2: Stage2Logits,
    gains: Gains,
    prefixes: tuple[Tensor, Tensor, Tensor],
    temperature: float,
) -> Tensor:
    """The mean soft value of both stages, each given the best or the present choices of the other.

    Args:
        stage1: logits of B samples.
        stage2: logits after R prefixes.
        gains: of the B samples.
        prefixes: row of the sample, tier and position of each prefix, choice indices [R].
        temperature: weight of the entropy.
    """
    value_B = soft_value(stage1, gains.relative_BAP, temperature)
    value_R = soft_value(stage2, gains.relative_BAPKN[prefixes], temperature)
    return value_B.mean() + value_R.mean()


@torch.no_grad()
def regret_of_stages(
    stage1: Stage1Logits,
    stage2: Stage2Logits,
    gains: Gains,
    prefixes: tuple[Tensor, Tensor, Tensor],
) -> float:
    """Mean expected reward that stage 1 loses, plus what stage 2 loses after its prefixes."""
    lost_B = -soft_value(stage1, gains.relative_BAP, 0.0)
    after_RKN = gains.relative_BAPKN[prefixes]
    lost_R = after_RKN.flatten(1).amax(1) - soft_value(stage2, after_RKN, 0.0)
    return float(lost_B.mean() + lost_R.mean())

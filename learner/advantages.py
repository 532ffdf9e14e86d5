"""Group-relative advantages, pure functions of rewards.

Shapes: N groups, G episodes of a group (one sample and one budget).

The three forms map values [N, G] to advantages [N, G], row by row. With the leave-one-out form A,
the expectation of A grad(log prob) is the gradient of the expected reward; the mean-only form gives
(G - 1) / G of it, and the standardised form another direction, because its divisor depends on the
same samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

AdvantageFn = Callable[[np.ndarray], np.ndarray]
AdvantageForm = Literal["leave_one_out", "mean_only", "group_standardised"]

STD_EPS = 1e-6
ZERO_SPREAD = 1e-9


def leave_one_out(values_NG: np.ndarray) -> np.ndarray:
    """Each value minus the mean of the others in its group (RLOO, Kool et al. 2019)."""
    size = _group_size(values_NG)
    return mean_only(values_NG) * (size / (size - 1))


def mean_only(values_NG: np.ndarray) -> np.ndarray:
    """Each value minus the mean of its group (Dr. GRPO, Liu et al. 2025)."""
    _group_size(values_NG)
    return values_NG - values_NG.mean(axis=1, keepdims=True)


def group_standardised(values_NG: np.ndarray) -> np.ndarray:
    """Values standardised by their group's mean and population std (GRPO, Shao et al. 2024).

    A group without spread gives zeros.
    """
    centred_NG = mean_only(values_NG)
    std_N1 = values_NG.std(axis=1, keepdims=True)
    return np.where(zero_variance(values_NG)[:, None], 0.0, centred_NG / (std_N1 + STD_EPS))


ADVANTAGE_FORMS: dict[AdvantageForm, AdvantageFn] = {
    "leave_one_out": leave_one_out,
    "mean_only": mean_only,
    "group_standardised": group_standardised,
}


def combine(
    form: AdvantageFn, score_rewards_NG: np.ndarray, constraint_rewards_NG: np.ndarray
) -> np.ndarray:
    """Computes the advantages of score and constraint separately and adds them: [N, G].

    The constraint part of the reward is -(lambda * violation + 0.5 * overshoot). Separately, a
    large lambda cannot shrink the score's advantages through a common divisor.

    The standardised form divides each part by its own spread in the group, so any factor on the
    whole part cancels: lambda then only weighs violation against overshoot and hardly changes the
    cost of a violation relative to the score. Use leave_one_out or mean_only, where lambda keeps
    its weight, to hold a violation rate.
    """
    if score_rewards_NG.shape != constraint_rewards_NG.shape:
        raise ValueError(
            f"score rewards {score_rewards_NG.shape} and constraint rewards "
            f"{constraint_rewards_NG.shape} differ in shape: give one of each per episode"
        )
    return form(score_rewards_NG) + form(constraint_rewards_NG)


def zero_variance(values_NG: np.ndarray) -> np.ndarray:
    """Whether all values of a group are equal: bool [N]. NaN equals nothing."""
    return np.ptp(values_NG, axis=1) <= ZERO_SPREAD


def _group_size(values_NG: np.ndarray) -> int:
    if values_NG.ndim != 2 or values_NG.shape[1] < 2:
        raise ValueError(
            f"rewards of shape {values_NG.shape} have no group to compare with: give [N, G] with "
            "a group_size of at least 2"
        )
    return values_NG.shape[1]

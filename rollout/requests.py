"""What a rollout worker is asked for, and what it returns besides groups.

Shapes: G members, D d_model, K budget tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rollout.group_rollout import GroupRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """One group to run; the same request gives the same choices on every actor.

    Attributes:
        group_id: number of the group in the run.
        run_seed: seed of the run.
        step: step of the run, part of every member's seed.
        split: of the tasks.
        index: of the sample in the split.
        budget_ms: latency budget of every member.
        group_size: members; 0 asks for one episode with the likeliest choices.
    """

    group_id: int
    run_seed: int
    step: int
    split: str
    index: int
    budget_ms: float
    group_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedGroup:
    """A group that could not run because of its sample; the run goes on without it."""

    group_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GradientRequest:
    """The vector-Jacobian product of one group; it needs no policy, because the token is in it.

    Attributes:
        group_id: number of the group in the run.
        split: of the tasks.
        index: of the sample in the split.
        budget_ms: latency budget of the group.
        budget_token_D: what entered block 0 when the group ran.
        actions_G4: choice indices of the members.
        gradients_GD: dL/d(latency token) of each member.
    """

    group_id: int
    split: str
    index: int
    budget_ms: float
    budget_token_D: np.ndarray
    actions_G4: np.ndarray
    gradients_GD: np.ndarray

    @classmethod
    def of(cls, group: GroupRollout, gradients_GD: np.ndarray) -> GradientRequest:
        """For a group that ran, wherever it did."""
        return cls(
            group_id=group.group_id,
            split=group.split,
            index=group.index,
            budget_ms=group.budget_ms,
            budget_token_D=group.budget_token,
            actions_G4=group.actions,
            gradients_GD=gradients_GD,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRequest:
    """One sample taken to every insertion position at every tier, with some budget tokens.

    Attributes:
        split: of the tasks.
        index: of the sample in the split.
        budget_tokens_KD: float32, what enters block 0.
    """

    split: str
    index: int
    budget_tokens_KD: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    """What the controller would see of one sample: float32 [D] and [K, 3, 5, D]."""

    language_feature: np.ndarray
    latency_tokens: np.ndarray

"""Requests to a rollout worker, and its results other than groups.

Shapes: G members, D d_model, K budget tokens, S samples, E configurations scored of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from envs.prices import FREE
from envs.spec import Features
from rollout.group_rollout import GroupRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """One group to run; the same request leads to the same choices on every actor.

    Attributes:
        group_id: number of the group in the run.
        run_seed: seed of the run.
        step: step of the run, part of every member's seed.
        split: split of the tasks.
        index: index of the sample in the split.
        budget_ms: latency budget of every member.
        price: price of time of every member.
        group_size: number of members.
    """

    group_id: int
    run_seed: int
    step: int
    split: str
    index: int
    budget_ms: float
    group_size: int
    price: float = FREE

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}: a group has at least one episode")


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyRequest:
    """One episode with the most likely choices, as a group of one.

    Attributes:
        group_id: number of the group in the evaluation.
        split: split of the tasks.
        index: index of the sample in the split.
        budget_ms: latency budget.
        price: price of time.
    """

    group_id: int
    split: str
    index: int
    budget_ms: float
    price: float = FREE


AnyRequest = GroupRequest | GreedyRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedGroup:
    """A group that could not run because of its sample; the run continues without it."""

    group_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GradientRequest:
    """The vector-Jacobian product of one group; needs no policy, because it holds the token.

    Attributes:
        group_id: number of the group in the run.
        split: split of the tasks.
        index: index of the sample in the split.
        budget_ms: latency budget of the group.
        budget_token_D: the budget token that entered block 0 when the group ran.
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
        """The request for a group that ran on any actor."""
        return cls(
            group_id=group.group_id,
            split=group.split,
            index=group.index,
            budget_ms=group.budget_ms,
            budget_token_D=group.budget_token,
            actions_G4=group.actions,
            gradients_GD=gradients_GD,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreRequest:
    """Configurations of some samples that are answered and scored together, off the clock.

    Attributes:
        split: split of the tasks.
        indices: index of each sample in the split.
        actions_SE4: int64, choice indices of each sample's configurations.
    """

    split: str
    indices: tuple[int, ...]
    actions_SE4: np.ndarray

    def in_parts(self, most: int) -> list[ScoreRequest]:
        """The same in requests of at most `most` configurations, or of a single sample each."""
        size = max(1, most // max(1, self.actions_SE4.shape[1]))
        return [
            replace(
                self,
                indices=self.indices[start : start + size],
                actions_SE4=self.actions_SE4[start : start + size],
            )
            for start in range(0, len(self.indices), size)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRequest:
    """One sample, run to every insertion position at every tier, with K budget tokens.

    Attributes:
        split: split of the tasks.
        index: index of the sample in the split.
        budget_tokens_KD: float32, the budget tokens that enter block 0.
    """

    split: str
    index: int
    budget_tokens_KD: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    """The controller's inputs for one sample, latency tokens as float32 [K, 3, 5, D]."""

    features: Features
    latency_tokens: np.ndarray

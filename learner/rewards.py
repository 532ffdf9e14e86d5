"""The rewards of a batch of groups.

Shapes: N groups, G episodes of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.reward import Reward, RewardFunction, is_violation
from envs.spec import Knobs
from rollout.group_rollout import GroupRollout


def rewards_of(groups: Sequence[GroupRollout], reward: RewardFunction) -> Reward:
    """The rewards of a batch, every array [N, G]."""
    shape = (len(groups), groups[0].group_size)
    budgets_ms, prices = np.repeat([(g.budget_ms, g.price) for g in groups], shape[1], axis=0).T
    flat = reward(
        np.concatenate([g.scores for g in groups]),
        np.concatenate([g.latencies_ms for g in groups]),
        budgets_ms,
        [Knobs.from_indices(action) for g in groups for action in g.actions],
        np.repeat([g.feasible for g in groups], shape[1]),
        prices,
    )
    return Reward(
        score=flat.score.reshape(shape),
        constraint=flat.constraint.reshape(shape),
        components={name: part.reshape(shape) for name, part in flat.components.items()},
    )


def violations(groups: Sequence[GroupRollout]) -> np.ndarray:
    """Whether each episode exceeded its budget: bool [N, G]."""
    return np.stack([is_violation(g.latencies_ms, g.budget_ms) for g in groups])

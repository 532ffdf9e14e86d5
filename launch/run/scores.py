"""Scores of further configurations on a step's samples, answered off the clock.

Shapes: G episodes of a group, E configurations scored of each group, S groups of one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from envs.action_masks import masked_configurations
from envs.spec import TIERS
from rollout.fleet import Fleet
from rollout.group_rollout import GroupRollout
from rollout.requests import ScoreRequest

CONFIGURATIONS = np.argwhere(~masked_configurations())
"""Choice indices of all configurations, int64 [225, 4]."""

PAIRS_PER_REQUEST = 24
"""Number of (sample, configuration) pairs that are answered in one pass. More would take longer
than a group, which waits for it, and hardly cost less each (`python -m benchmarks.scoring`)."""


def scored(
    fleet: Fleet[Any], groups: Sequence[GroupRollout], num_scored: int, seed: int
) -> list[GroupRollout]:
    """The groups, with the scores of `num_scored` configurations that they did not run.

    Args:
        fleet: answers them.
        groups: of one split.
        num_scored: E.
        seed: of the run; with a group's id it determines its configurations.
    """
    if not num_scored or not groups:
        return list(groups)
    actions = [drawn(group.actions, num_scored, [seed, group.group_id]) for group in groups]
    size = max(1, PAIRS_PER_REQUEST // num_scored)
    parts = [slice(start, start + size) for start in range(0, len(groups), size)]
    requests = [
        ScoreRequest(
            split=groups[0].split,
            indices=tuple(group.index for group in groups[part]),
            actions_SE4=np.stack(actions[part]),
        )
        for part in parts
    ]
    scores = np.concatenate(fleet.scores(requests))
    return [
        replace(group, scored_actions=actions_E4, scored=scores_E)
        for group, actions_E4, scores_E in zip(groups, actions, scores, strict=True)
    ]


def drawn(ran_G4: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
    """Random configurations other than those that a group ran, int64 [E, 4].

    They are of one tier, which is random too, as long as it has enough of them: encoding the image
    at a tier costs more than a further answer there.
    """
    rng = np.random.default_rng(seed)
    ran = (CONFIGURATIONS[:, None] == ran_G4).all(-1).any(1)
    rows = rng.permutation(np.flatnonzero(~ran))
    turn_of_tier = rng.permutation(len(TIERS))
    by_tier = np.argsort(turn_of_tier[CONFIGURATIONS[rows, 0]], kind="stable")
    return CONFIGURATIONS[rows[by_tier[:count]]]

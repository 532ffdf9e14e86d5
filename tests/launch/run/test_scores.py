"""Which configurations are scored off the clock, and where their scores go."""

from dataclasses import replace

import numpy as np
import pytest

from envs.spec import all_knobs
from launch.run.recipes import embedded
from launch.run.scores import CONFIGURATIONS, PAIRS_PER_REQUEST, drawn, scored
from rollout.group_rollout import GroupRollout
from tests.rollout.test_group_rollout import GOOD


def make_group(number):
    return GroupRollout(**{**GOOD, "group_id": number, "index": number})


class CountingFleet:
    """Scores tell which sample and which configuration they are of."""

    def __init__(self):
        self.requests = []

    def scores(self, requests):
        self.requests += requests
        return [
            np.array(
                [
                    [index + action[0] / 10 for action in actions]
                    for index, actions in zip(r.indices, r.actions_SE4, strict=True)
                ],
                np.float32,
            )
            for r in requests
        ]


def test_configurations_are_all_that_exist():
    assert {tuple(row) for row in CONFIGURATIONS} == {knobs.indices() for knobs in all_knobs()}


def test_drawn_ones_are_new_distinct_and_repeatable():
    ran = CONFIGURATIONS[[3, 60]]
    many = np.array([drawn(ran, 4, [7, number]) for number in range(500)])
    rows = (many[:, :, None] == CONFIGURATIONS).all(-1).argmax(-1)
    assert not np.isin(rows, [3, 60]).any()
    assert all(len(set(row)) == 4 for row in rows)
    assert len(np.unique(rows)) == len(CONFIGURATIONS) - 2
    assert np.array_equal(drawn(ran, 4, [7, 0]), many[0])
    assert (many[..., 0] == many[:, :1, 0]).all(), "one tier, whose image is encoded once"
    assert len(np.unique(many[:, 0, 0])) == 3
    assert len({tuple(row) for row in drawn(ran, 223, [7])}) == 223


def test_groups_get_the_scores_of_their_own_samples():
    groups = [make_group(number) for number in range(13)]
    fleet = CountingFleet()
    result = scored(fleet, groups, 4, seed=1)
    assert all(r.actions_SE4[..., 0].size <= PAIRS_PER_REQUEST for r in fleet.requests)
    for group, old in zip(result, groups, strict=True):
        assert (group.group_id, group.index) == (old.group_id, old.index)
        assert group.scored == pytest.approx(group.index + group.scored_actions[:, 0] / 10)


def test_no_scores_no_requests():
    fleet, groups = CountingFleet(), [make_group(0)]
    assert scored(fleet, groups, 0, seed=1) == groups
    assert scored(fleet, [], 4, seed=1) == []
    assert not fleet.requests


def test_scores_need_replay_and_other_configurations():
    base = embedded()
    with pytest.raises(ValueError, match="only the outcome model of replay learns"):
        replace(base, learner=replace(base.learner, replay=None))
    with pytest.raises(ValueError, match="num_scored"):
        replace(base, num_scored=224)

"""The rules of an episode, on an executor that only counts."""

import numpy as np
import pytest

from envs.calibration import SteadyTime
from envs.episode import EpisodeGroup
from envs.spec import Elapsed, Execution, Features, Knobs, Sample
from envs.terms import Terms

SAMPLE = Sample(id="t/train/0", task="t", image=None, prompt="what", answers=())
TOKEN = np.zeros(3, np.float32)
CHEAPEST_MS = 11.0


class Twice:
    """A device that takes twice its calibrated milliseconds."""

    def to_present(self, ms):
        return 2 * ms

    def to_calibrated(self, ms):
        return ms / 2


class CountingSession:
    """Ten milliseconds for each layer group of the choice; remembers what it was asked for."""

    def __init__(self):
        self.calls = []

    def features(self):
        self.calls.append("features")
        return Features(language=TOKEN, image=TOKEN[:0]), {"seeing": Elapsed(1.0, 2.0)}

    def begin(self, choices, _token):
        self.calls.append(("begin", list(choices)))
        self.began = list(choices)
        return np.array([[position] * 3 for _, position in choices], np.float32)

    def finish(self, choices, budget_ms=None):
        self.calls.append(("finish", list(choices), budget_ms))
        return [
            None if choice is None else execution(*began, *choice)
            for began, choice in zip(self.began, choices, strict=True)
        ]

    def cheapest_latency_ms(self):
        self.calls.append("cheapest")
        return CHEAPEST_MS


class CountingExecutor:
    d_model, image_dim = 3, 0

    def __init__(self):
        self.session = CountingSession()

    def open(self, _sample):
        return self.session


def execution(tier, position, top_k, num_blocks):
    return Execution(
        knobs=Knobs(tier=tier, position=position, top_k=top_k, num_blocks=num_blocks),
        answer="yes",
        num_output_tokens=1,
        finished=True,
        latency_ms=10.0 * (1 + tier),
        wall_ms=20.0,
        stages_ms={"blocks": 10.0 * (1 + tier)},
        host_ms=0.0,
        num_vision_tokens=0,
        num_text_tokens=1,
        tiling=(0, 0),
    )


def group_of(budget_ms, present=None):
    terms = Terms(budget_ms=budget_ms)
    group = EpisodeGroup(CountingExecutor(), SAMPLE, terms, present or SteadyTime())
    group.look()
    return group


def test_times_are_added_up_and_put_on_the_calibrated_clock():
    group = group_of(50.0, Twice())
    assert group.device_budget_ms == 100.0
    stage1 = [{"stage1": Elapsed(3.0, 4.0)}, {"stage1": Elapsed(5.0, 6.0)}]
    tokens = group.begin(np.array([[0, 0], [2, 4]]), TOKEN, stage1)
    assert tokens.tolist() == [[1.0] * 3, [5.0] * 3]
    cheap, dear = group.finish(np.array([[0, 0], [4, 4]]), [{"stage2": Elapsed(1.0, 1.0)}] * 2)
    assert cheap.device_ms == 10 + 1 + 3 + 1
    assert dear.device_ms == 30 + 1 + 5 + 1
    assert cheap.latency_ms == cheap.device_ms / 2
    assert dear.wall_ms == 20 + 2 + 6 + 1
    assert dear.stages_ms == {"seeing": 1.0, "stage1": 5.0, "stage2": 1.0, "blocks": 30.0}
    assert group.session.calls[-1][2] == 100.0, "the budget in ms of the device"


def test_an_invalid_choice_ends_its_episode_alone():
    group = group_of(50.0)
    tokens = group.begin(np.array([[3, 0], [0, 4], [1, 0]]), TOKEN)
    assert group.running_G.tolist() == [False, True, True]
    assert tokens[0].tolist() == [0.0] * 3
    outcomes = group.finish(np.array([[0, 0], [0, 0], [1, 1]]))
    assert [outcome is None for outcome in outcomes] == [True, True, False], "p = 5 allows 16 only"
    assert group.session.calls[1:] == [
        ("begin", [(0, 5), (1, 1)]),
        ("finish", [None, (5, 13)], 50.0),
    ]


@pytest.mark.parametrize(
    ("budget_ms", "is_feasible", "asks"),
    [(12.0, True, False), (11.0, True, False), (10.5, False, True)],
)
def test_the_cheapest_configuration_is_asked_only_where_no_episode_met_the_budget(
    budget_ms, is_feasible, asks
):
    group = group_of(budget_ms)
    group.begin(np.array([[0, 0], [2, 0]]), TOKEN)
    group.finish(np.array([[0, 0], [0, 0]]))
    assert group.is_feasible() == is_feasible
    assert ("cheapest" in group.session.calls) == asks

import numpy as np
import pytest

from envs.scoring import score_of
from envs.spec import DataError, Sample, all_knobs
from policy.weights import PolicyWeights, weights_sha256
from rollout.requests import FailedGroup, GroupRequest
from tests import launch_rig
from tests.rollout import rig

NONSENSE = (float("nan"), float("inf"), None, 1.7, -0.1, "1", np.array([1.0]))


class Careless(rig.NoiseTask):
    """A task whose scores are not checked by whoever wrote it."""

    def __init__(self, value, sample_ids=()):
        self.value, self.sample_ids = value, sample_ids

    def score(self, sample, answer):
        good = self.sample_ids and sample.id not in self.sample_ids
        return super().score(sample, answer) if good else self.value


@pytest.fixture
def sample():
    return Sample(id="own/test/3", task="own", image=None, prompt="what", answers=("a",))


@pytest.mark.parametrize("value", NONSENSE, ids=str)
def test_a_score_that_is_none_names_task_sample_and_value(sample, value):
    with pytest.raises(DataError, match=r"task own gave the answer 'yes' to sample own/test/3"):
        score_of(Careless(value), sample, "yes")


def test_an_error_of_a_task_names_the_sample_and_its_line(sample):
    class Failing:
        def score(self, sample, answer):
            return {}["answers"]

    message = r"task own .* sample own/test/3: KeyError: 'answers' \(test_scoring.py line \d+\)"
    with pytest.raises(DataError, match=message):
        score_of(Failing(), sample, "yes")


@pytest.mark.parametrize("value", [0, 1, True, 0.5, np.float32(0.25), np.int64(1)])
def test_numbers_of_any_kind_are_scores(sample, value):
    found = score_of(Careless(value), sample, "yes")
    assert type(found) is float
    assert found == value


def test_every_way_to_an_episode_checks_its_score(caplog):
    worker = launch_rig.worker()
    worker.loader.tasks = Careless(float("nan"), ("noise/test/1",))
    arrays = rig.controller(seed=3).to_numpy()
    weights = PolicyWeights(version=1, sha256=weights_sha256(arrays), arrays=arrays)
    worker.install(launch_rig.setup(), weights)
    request = GroupRequest(
        group_id=0, run_seed=0, step=0, split="test", index=1, budget_ms=50.0, group_size=2
    )
    found = worker.rollout(request)
    assert isinstance(found, FailedGroup)
    assert "sample noise/test/1 the score nan" in found.reason
    knobs = list(all_knobs())[:2]
    assert worker.profile(knobs, "test", 1) == []
    assert len(worker.profile(knobs, "test", 2)) == 2
    assert np.isnan(worker.cheapest_ms("test", 1, 2, None)).all()
    with pytest.raises(DataError, match="the score nan"):
        worker.execute(knobs[0], "test", 1)
    assert "left out" in caplog.text

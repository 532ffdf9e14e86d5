"""What the worker keeps, and which errors are a sample's fault."""

from dataclasses import replace

import numpy as np
import pytest

from envs.spec import CHEAPEST_KNOBS
from envs.tasks import DataError
from policy.weights import PolicyWeights, weights_sha256
from rollout.group_rollout import GroupRollout
from rollout.requests import FailedGroup, GradientRequest, GroupRequest
from rollout.worker import RolloutWorker
from tests import launch_rig
from tests.rollout import rig


def request(group_id, group_size=2):
    return GroupRequest(
        group_id=group_id,
        run_seed=0,
        step=0,
        split="train",
        index=group_id,
        budget_ms=40.0,
        group_size=group_size,
    )


@pytest.fixture
def worker():
    return with_policy(launch_rig.worker())


def with_policy(worker):
    arrays = rig.controller().to_numpy()
    weights = PolicyWeights(version=0, sha256=weights_sha256(arrays), arrays=arrays)
    worker.install(launch_rig.setup(), weights)
    return worker


def test_an_unusable_sample_is_a_failed_group_and_any_other_error_is_an_error(worker, monkeypatch):
    def broken(split, index):
        raise DataError(f"sample {split}/{index}: the image cannot be decoded")

    with monkeypatch.context() as patch:
        patch.setattr(worker.tasks, "sample", broken)
        failed = worker.rollout(request(3))
    assert isinstance(failed, FailedGroup)
    assert failed.reason == "sample train/3: the image cannot be decoded"

    empty = replace(worker.tasks.sample("train", 0), prompt=" ")
    with monkeypatch.context() as patch:
        patch.setattr(worker.tasks, "sample", lambda split, index: empty)
        assert isinstance(worker.rollout(request(3)), FailedGroup)

    def fault(*_arguments, **_options):
        raise ValueError("KV cache of 4 tokens cannot take token 5")

    monkeypatch.setattr(worker.executor.model, "run_blocks", fault)
    with pytest.raises(ValueError, match="KV cache"):
        worker.rollout(request(3))
    with pytest.raises(ValueError, match="latency budget -1"):
        worker.rollout(replace(request(3), budget_ms=-1.0))


def test_greedy_groups_are_not_kept(worker):
    assert isinstance(worker.rollout(request(0, group_size=0)), GroupRollout)
    assert not worker._kept
    worker.rollout(request(1))
    assert list(worker._kept) == [1]


def test_kept_groups_stay_within_their_memory(worker):
    for index in range(4):
        worker.rollout(request(index))
    sizes = [group.num_bytes for group in worker._kept.values()]
    assert list(worker._kept) == [0, 1, 2, 3]
    worker.rollout(request(1))
    assert list(worker._kept) == [0, 2, 3, 1], "one that runs again is the newest"
    worker.kept_bytes = sum(sizes)
    worker.rollout(request(4))
    assert list(worker._kept)[-2:] == [1, 4]
    assert 0 not in worker._kept
    assert sum(group.num_bytes for group in worker._kept.values()) <= worker.kept_bytes
    worker.kept_bytes = min(sizes) - 1
    worker.rollout(request(2))
    assert 2 not in worker._kept, "none fits"


def test_a_group_that_found_no_room_has_its_gradient_all_the_same(worker):
    group = worker.rollout(request(1))
    rows = np.ones((2, rig.SIXTEEN.d_model), np.float32)
    kept = worker.budget_gradient(GradientRequest.of(group, rows))
    executor, tasks = worker.executor, worker.tasks
    forgetful = with_policy(RolloutWorker(executor, tasks, kept_groups_mib=0))
    forgetful.rollout(request(1))
    assert not forgetful._kept
    again = forgetful.budget_gradient(GradientRequest.of(group, rows))
    assert np.array_equal(again, kept)


def test_fixed_configurations_run_without_a_budget_token(monkeypatch):
    measured = RolloutWorker(rig.executor(), rig.NoiseTask())
    execution, _ = measured.execute(CHEAPEST_KNOBS, "train", 0)
    assert "budget_token" not in execution.stages_ms
    assert execution.latency_ms == pytest.approx(sum(execution.stages_ms.values()))
    (record,) = measured.profile([CHEAPEST_KNOBS], "train", 0)
    assert "budget_token" not in record.execution.stages_ms
    fields = record.to_json()
    parts = ("T_vision_total", "T_LLM_prefill", "T_LLM_decode")
    assert sum(fields[name] for name in parts) == pytest.approx(fields["latency_ms"])

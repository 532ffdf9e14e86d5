"""Faults on purpose: their times, what they hit, and a run that survives them."""

import itertools

import pytest

from launch.cluster.config import ClusterConfig, FaultConfig
from launch.cluster.faults import FaultInjector
from launch.cluster.fleet import RayFleet
from launch.joint_grpo import train
from launch.run.opening import faults_of
from launch.run.recipes import BudgetConfig
from launch.run.state import Run
from launch.run.supervise import supervise
from launch.storage import retries
from launch.storage.remote_folder import RemoteFolder
from policy.weights import weights_sha256
from tests import launch_rig
from tests.launch.cluster.nodes import cluster_of, opened


def injector(**settings):
    return FaultInjector(FaultConfig(**settings), list, lambda: None, lambda _s: None)


def test_a_schedule_is_kept_in_order():
    faults = injector(schedule=("learner@60", "actor@2.5"))
    assert list(faults.times()) == [(2.5, "actor"), (60.0, "learner")]


def test_random_faults_come_between_those_of_a_schedule():
    faults = injector(every_s=10, kinds=("node",), schedule=("actor@50", "learner@20"))
    found = list(itertools.islice(faults.times(), 30))
    assert found == sorted(found)
    assert [kind for _, kind in found if kind != "node"] == ["learner", "actor"]
    assert found[0][1] == "node"


def test_random_times_follow_from_the_seed():
    def first(seed):
        faults = injector(every_s=10, kinds=("actor", "node"), seed=seed)
        return list(itertools.islice(faults.times(), 200))

    found = first(1)
    assert found == first(1) != first(2)
    assert {kind for _, kind in found} == {"actor", "node"}
    assert found[-1][0] / 200 == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("entry", ["actor", "actor@", "actor@soon", "cat@3", "actor@-1"])
def test_a_schedule_that_cannot_be_read_says_how_to_write_it(entry):
    with pytest.raises(ValueError, match="write KIND@SECONDS, such as actor@30, with one of actor"):
        FaultConfig(schedule=(entry,))


def test_an_outage_of_the_store_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retries, "OUTAGE", retries.Outage())
    folder = RemoteFolder((tmp_path / "store").as_uri())
    retries.OUTAGE.begin(60)
    with pytest.raises(retries.StoreError, match="outage on purpose"):
        folder.put("a", b"1")
    retries.OUTAGE.begin(0)
    folder.put("a", b"1")
    assert folder.get("a") == b"1"


@pytest.fixture
def cluster():
    with cluster_of(1, 1) as nodes:
        yield nodes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_survives_a_schedule_to_the_bit(cluster, tmp_path, monkeypatch):
    settings = launch_rig.config(
        steps=14,
        run_dir=str(tmp_path / "run"),
        budget=BudgetConfig(low_ms=10, high_ms=100, share_below=0.1, num_samples=2),
        cluster=ClusterConfig(group_timeout_s=30, start_timeout_s=300, max_restarts=50),
        faults=FaultConfig(schedule=("actor@0", "learner@3", "node@6", "actor@20")),
    )
    quiet = launch_rig.local_run(tmp_path / "quiet", settings)
    train(quiet)
    fleet = RayFleet(launch_rig.worker, settings.cluster)
    run, store = opened(settings, fleet)
    faults = faults_of(run, fleet)
    original = Run.finish_step

    def finish_step(run, groups):
        original(run, groups)
        if run.next_step == 10:
            faults._thread.join(120)  # all of them happen while there are steps left

    monkeypatch.setattr(Run, "finish_step", finish_step)
    with faults:
        assert supervise(run, train) == 0
    fleet.shutdown()
    assert faults.injected == ["actor", "learner", "node", "actor"]
    assert fleet.stats.restarts >= 2
    final = store.load_latest()
    assert final.state["next_step"] == 14
    ours = weights_sha256(final.controller.to_numpy())
    assert ours == weights_sha256(quiet.learner.controller.to_numpy())

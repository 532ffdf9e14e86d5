"""A fleet that follows its cluster: nodes join and are lost while it trains."""

import functools
import time

import numpy as np
import pytest
import ray

from launch.cluster.config import ClusterConfig
from launch.cluster.connection import connect
from launch.cluster.fleet import RayFleet
from launch.joint_grpo import train
from launch.run.recipes import BudgetConfig
from launch.run.state import Run
from launch.run.supervise import supervise
from policy.weights import weights_sha256
from tests import launch_rig
from tests.launch.cluster.nodes import cluster_of, opened

GROUP_S = 0.3
"""Duration of a group, which is asleep for most of it, so that a core can run many actors."""


@pytest.fixture
def cluster():
    with cluster_of(1) as nodes:
        yield nodes


def sleeping_worker():
    """Answers as the test rig does, and takes as long as a device would."""
    worker = launch_rig.worker()
    original = worker.rollout

    def rollout(request):
        ends = time.monotonic() + GROUP_S
        group = original(request)
        time.sleep(max(0.0, ends - time.monotonic()))
        return group

    worker.rollout = rollout
    return worker


class Churn:
    """Adds three nodes in the first half of a run and kills two in the second, at random steps."""

    def __init__(self, cluster, fleet, seed, num_steps):
        self.cluster, self.fleet = cluster, fleet
        self.rng, half = np.random.default_rng(seed), num_steps // 2
        self.joins = sorted(self.rng.choice(np.arange(1, half), 3, replace=False).tolist())
        self.losses = self.rng.choice(np.arange(half, num_steps - 3), 2, replace=False).tolist()
        self.most, self.busy, self.present = 0, [], None
        self.warm_since, self.first_done = {}, {}

    def after(self, step):
        """Looks at who worked in a step, then changes the cluster."""
        ready = self.fleet.pool.members.ready
        for slot in ready:
            self.warm_since.setdefault((slot.name, slot.incarnation), step)
            if slot.num_done:
                self.first_done.setdefault((slot.name, slot.incarnation), step)
        present, before = {(s.name, s.incarnation) for s in ready}, self.present
        self.most, self.present = max(self.most, len(ready)), present
        if present == before:
            shares = self.fleet.stats.busy_share
            self.busy.append(float(np.mean([shares[slot.name] for slot in ready])))
        if step in self.joins:
            self.cluster.add_node(num_cpus=1)
            self.present = None  # the driver was held up
        if step == self.joins[-1]:
            self._await(4)
        if step in self.losses:
            nodes = sorted(self.cluster.worker_nodes, key=lambda node: node.node_id)
            victim = nodes[int(self.rng.integers(len(nodes)))]
            self.cluster.remove_node(victim, allow_graceful=False)  # SIGKILL
            self.present = None

    def _await(self, count):
        """Waits until so many actors are warm, for two minutes."""
        deadline = time.monotonic() + 120
        while len(self.fleet.pool.members.ready) < count and time.monotonic() < deadline:
            self.fleet.pool._pump()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.soak) for s in range(1, 20))]
)
def test_nodes_that_join_and_leave_cost_no_step(cluster, tmp_path, monkeypatch, seed):
    steps = 12
    settings = launch_rig.config(
        steps=steps,
        groups_per_step=16,
        group_size=2,
        max_staleness=1,
        run_dir=str(tmp_path / "churn"),
        budget=BudgetConfig(low_ms=10, high_ms=100, share_below=0.1, num_samples=2),
        cluster=ClusterConfig(group_timeout_s=30, start_timeout_s=300, max_restarts=50),
    )
    quiet = launch_rig.local_run(tmp_path / "quiet", settings)
    train(quiet)
    fleet = RayFleet(sleeping_worker, settings.cluster)
    assert fleet.num_actors == 1
    run, store = opened(settings, fleet)
    churn, counted, original = Churn(cluster, fleet, seed, steps), [], Run.finish_step

    def finish_step(run, groups):
        counted.append([g.group_id for g in groups])
        original(run, groups)
        churn.after(run.next_step)

    monkeypatch.setattr(Run, "finish_step", finish_step)
    assert supervise(run, train) == 0
    fleet.shutdown()
    assert churn.most == 4
    whole = [list(range(16 * step, 16 * step + 16)) for step in range(steps)]
    assert all(ids in whole for ids in counted)
    assert {tuple(ids) for ids in counted} == {tuple(ids) for ids in whole}
    assert len(counted) <= steps + 2, "a lost learner's node may cost the step in flight"
    for actor, step in churn.first_done.items():
        assert step - churn.warm_since[actor] <= 2
    assert np.median(churn.busy) > 0.9, churn.busy
    final = store.load_latest()
    ours = weights_sha256(final.controller.to_numpy())
    assert ours == weights_sha256(quiet.learner.controller.to_numpy())


def downloading_worker(folder):
    """Downloads for longer than an actor may take to start without any progress."""
    blobs = folder / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for number in range(24):
        (blobs / "model.incomplete").write_bytes(b"x" * number)
        time.sleep(0.5)
    return launch_rig.worker()


def flaky_worker(folder):
    """Raises at the first two starts, as when the hub is busy."""
    attempts = len(list(folder.iterdir()))
    (folder / str(attempts)).touch()
    if attempts < 2:
        raise OSError("the hub did not deliver it (429)")
    return launch_rig.worker()


@pytest.fixture
def one_core(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    if ray.is_initialized():
        ray.shutdown()
    connect("local", num_cpus=1)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_download_that_makes_progress_may_take_longer_than_a_start(one_core, tmp_path):
    limits = ClusterConfig(num_actors=1, start_timeout_s=8, max_restarts=0)
    build = functools.partial(downloading_worker, tmp_path)
    fleet = RayFleet(build, limits, downloads="owner/name")
    assert fleet.stats.restarts == 0
    fleet.shutdown()


@pytest.mark.slow
def test_an_error_that_may_pass_is_tried_again(one_core, tmp_path, caplog):
    fleet = RayFleet(
        functools.partial(flaky_worker, tmp_path),
        ClusterConfig(num_actors=1, start_timeout_s=120),
    )
    assert fleet.stats.restarts == 2
    assert "429" in caplog.text
    assert "once more in 1 s" in caplog.text
    assert "once more in 2 s" in caplog.text
    fleet.shutdown()

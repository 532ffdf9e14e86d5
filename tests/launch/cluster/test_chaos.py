"""All faults at once: killed actors, a hang, a lost and a new node, a killed learner.

The run finishes on its own, no group is lost or counted twice, and the weights are bit-identical
to those of an undisturbed run.
"""

import contextlib
import functools
import os
import signal
import threading
import time

import numpy as np
import pytest
import ray

from launch.cluster.config import ClusterConfig
from launch.cluster.fleet import RayFleet
from launch.cluster.remote_learner import RemoteLearner
from launch.joint_grpo import train
from launch.run.recipes import BudgetConfig
from launch.run.state import Run
from launch.run.supervise import supervise
from policy.weights import weights_sha256
from tests import launch_rig
from tests.launch.cluster.nodes import cluster_of, opened
from tests.launch.cluster.test_fleet import hanging_worker


@pytest.fixture
def cluster():
    with cluster_of(2, 1) as nodes:
        yield nodes


class Chaos(threading.Thread):
    """Kills actors at random times; meanwhile replaces a node and kills the learner."""

    def __init__(self, fleet, cluster, learners, num_kills):
        super().__init__(daemon=True)
        self.fleet, self.cluster, self.learners = fleet, cluster, learners
        self.num_kills = num_kills
        self.kills, self.done = 0, threading.Event()
        self.learner_killed = self.node_replaced = False

    def run(self):
        rng = np.random.default_rng(1)
        while not self.done.is_set() and not (self.learner_killed and self.kills >= self.num_kills):
            time.sleep(float(rng.uniform(0.3, 2.0)))
            if self.kills >= 3 and self.learners and not self.learner_killed:
                ray.kill(self.learners[-1].actor)
                self.learner_killed = True
            if self.kills >= self.num_kills:
                continue  # all actors were killed before the learner was started
            facts = self.fleet.pool.slots[int(rng.integers(len(self.fleet.pool.slots)))].facts
            if facts is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(facts.pid, signal.SIGKILL)
                self.kills += 1

    def await_kills(self, number: int):
        """Delays a step, by a minute at most, so that the run does not end before the kills."""
        deadline = time.monotonic() + 60
        while self.kills < number and time.monotonic() < deadline:
            time.sleep(0.05)

    def replace_node(self):
        """Replaces a node, once, after some kills; only the main thread may start nodes."""
        if self.kills >= 2 and not self.node_replaced:
            self.node_replaced = True
            self.cluster.remove_node(next(iter(self.cluster.worker_nodes)))
            self.cluster.add_node(num_cpus=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("steps", "num_kills"), [(20, 5), pytest.param(40, 10, marks=pytest.mark.soak)]
)
def test_chaos_changes_nothing(cluster, tmp_path, monkeypatch, steps, num_kills):
    settings = launch_rig.config(
        steps=steps,
        run_dir=str(tmp_path / "chaos"),
        budget=BudgetConfig(low_ms=10, high_ms=100, share_below=0.1, num_samples=4),
        cluster=ClusterConfig(
            num_actors=3, group_timeout_s=15, start_timeout_s=300, max_restarts=50
        ),
    )
    quiet = launch_rig.local_run(tmp_path / "quiet", settings)
    train(quiet)
    (tmp_path / "hang").mkdir()
    fleet = RayFleet(functools.partial(hanging_worker, str(tmp_path / "hang")), settings.cluster)
    counted = []
    original = Run.finish_step
    learners, restarts, restart = [], [], RemoteLearner.restart

    def counted_restart(learner):
        restarts.append(learner)
        restart(learner)

    monkeypatch.setattr(RemoteLearner, "restart", counted_restart)
    chaos = Chaos(fleet, cluster, learners, num_kills)

    def finish_step(run, groups):
        counted.append([g.group_id for g in groups])
        chaos.replace_node()
        chaos.await_kills((run.next_step + 4) * num_kills // steps)
        original(run, groups)

    monkeypatch.setattr(Run, "finish_step", finish_step)
    chaos.start()
    run, store = opened(settings, fleet)
    learners.append(run.learner)
    assert supervise(run, train) == 0
    chaos.done.set()
    chaos.join()
    fleet.shutdown()
    assert chaos.kills >= num_kills
    assert chaos.learner_killed
    assert chaos.node_replaced
    assert restarts
    assert (tmp_path / "hang" / "hung").exists()
    whole = [list(range(3 * step, 3 * step + 3)) for step in range(steps)]
    assert all(ids in whole for ids in counted)
    final = store.load_latest()
    assert final.state["next_step"] == steps
    ours = weights_sha256(final.controller.to_numpy())
    assert ours == weights_sha256(quiet.learner.controller.to_numpy())

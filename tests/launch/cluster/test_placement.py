"""One actor per GPU for every command, on a cluster of nodes with pretended GPUs."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster

from launch import evaluate
from launch import profile_knobs as profile
from launch.cluster import fleet as clusters
from launch.cluster.config import ClusterConfig
from launch.cluster.fleet import open_fleet, placed
from launch.joint_grpo import train
from launch.run.opening import open_run
from launch.run.preflight import Preflight
from launch.run.recipes import BudgetConfig
from launch.run.state import Run
from launch.run.supervise import supervise
from learner.checkpoint import CheckpointStore
from rollout.image_feature import image_dim
from rollout.worker_config import WorkerConfig
from tests import launch_rig
from tests.rollout import rig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GPUS = (2, 1)
"""Of each node."""
SETTINGS = ClusterConfig(
    min_actors=sum(GPUS), start_timeout_s=400, group_timeout_s=120, step_timeout_s=400
)


@pytest.fixture(scope="module")
def cluster():
    if ray.is_initialized():
        ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    for num_gpus in GPUS:
        nodes.add_node(num_cpus=1, num_gpus=num_gpus)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def on_the_cpu(_worker, *, simulated=None):
    """Replaces a model on a GPU by the random one with simulated latencies."""
    return launch_rig.worker()


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    """Makes every command build its workers here, and use the connected cluster."""
    monkeypatch.setattr(clusters, "build_worker", on_the_cpu)


class Watched:
    """Records the placement of each fleet's actors when the fleet is shut down."""

    def __init__(self, monkeypatch):
        self.places = []
        original = clusters.RayFleet.shutdown

        def shutdown(fleet):
            facts = [slot.facts for slot in fleet.pool.slots if slot.facts is not None]
            self.places.append((len(fleet.pool.slots), [f.node for f in facts], fleet))
            original(fleet)

        monkeypatch.setattr(clusters.RayFleet, "shutdown", shutdown)

    def check(self):
        """Checks for one fleet with as many actors on a node as it has GPUs, each with its own."""
        (count, nodes, fleet) = self.places.pop()
        assert not self.places
        assert count == len(nodes) == sum(GPUS)
        assert sorted(map(nodes.count, set(nodes)), reverse=True) == list(GPUS)
        assert fleet.pool.members.options["num_gpus"] == 1


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


def settings(tmp_path, **changes):
    budgets = {"low_ms": 10, "high_ms": 100, "num_samples": 2}
    return launch_rig.config(
        **{
            "run_dir": str(tmp_path / "run"),
            "steps": 2,
            "groups_per_step": 0,
            "budget": BudgetConfig(**budgets),
            "cluster": SETTINGS,
            **changes,
        }
    )


def trained(tmp_path, monkeypatch, loop=train, **changes):
    """A whole session on the cluster, except for reading a real model's folder."""
    monkeypatch.setattr("launch.run.opening.connect", lambda _address: None)
    widths = rig.SIXTEEN.d_model, image_dim(rig.SIXTEEN)
    monkeypatch.setattr(Preflight, "of", lambda _config: Preflight(widths=widths))
    with open_run(settings(tmp_path, **changes)) as run:
        assert supervise(run, loop) == 0
    return CheckpointStore(tmp_path / "run" / "checkpoints").load_latest()


def test_every_program_has_one_actor_per_gpu(cluster, tmp_path, monkeypatch, watched):
    checkpoint = trained(tmp_path, monkeypatch)
    watched.check()
    assert checkpoint.state["configuration"]["groups_per_step"] == max(24, 6 * sum(GPUS))
    monkeypatch.setattr("launch.profile_knobs.connect", lambda _address: None)
    monkeypatch.setattr("launch.evaluate.connect", lambda _address: None)
    monkeypatch.setattr(WorkerConfig, "build_tasks", lambda _self: rig.NoiseTask())
    config = profile.ProfileConfig(
        output_dir=tmp_path, split="test", num_samples=2, calibration_samples=4, cluster=SETTINGS
    )
    rows_path = tmp_path / "rows.jsonl"
    profile.measure(config, profile.chosen_configurations(["corners"]), rows_path)
    watched.check()
    table = profile.to_table(profile.read_rows(rows_path), "test", WorkerConfig())
    table.save(tmp_path / "test.npz")
    # The figures do not matter here: another split's are as good, under its names.
    names = tuple(name.replace("/test/", "/validation/") for name in table.sample_ids)
    replace(table, sample_ids=names).save(tmp_path / "validation.npz")
    arguments = [str(tmp_path / "run"), "--test", str(tmp_path / "test.npz")]
    arguments += ["--validation", str(tmp_path / "validation.npz"), "--num-budgets", "2"]
    arguments += ["--cluster.min-actors", str(SETTINGS.min_actors)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    assert evaluate.main() == 0
    watched.check()


def test_a_lost_node_does_not_end_the_run(cluster, tmp_path, monkeypatch):
    removed, original = [], Run.finish_step

    def finish_step(run, groups):
        original(run, groups)
        if not removed:
            removed.append(next(iter(cluster.worker_nodes)))
            cluster.remove_node(removed[0])

    monkeypatch.setattr(Run, "finish_step", finish_step)
    fewer = replace(SETTINGS, min_actors=1)
    checkpoint = trained(tmp_path, monkeypatch, steps=4, cluster=fewer)
    cluster.add_node(num_cpus=1, num_gpus=GPUS[0])
    assert removed
    assert checkpoint.state["next_step"] == 4


def test_a_gpu_that_the_cluster_lacks_is_refused_at_once(monkeypatch):
    has = SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0})
    monkeypatch.setattr(clusters, "ray", has)
    with pytest.raises(ValueError, match=r"4\.0 CPU cores and no GPU"):
        placed(WorkerConfig(device="cuda"))
    assert placed(WorkerConfig(device="auto")).device == "cpu"


def test_a_cpu_fleet_asks_for_no_gpu(cluster):
    fleet = open_fleet(WorkerConfig(device="cpu"), ClusterConfig(num_actors=1, start_timeout_s=300))
    assert fleet.pool.members.options == {"num_cpus": 1}
    fleet.shutdown()

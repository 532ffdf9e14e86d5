"""Clusters of several nodes on this machine, and runs that are opened on a given fleet."""

import contextlib
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from launch.run.opening import Opening
from launch.run.preflight import Preflight
from rollout.image_feature import image_dim
from tests.rollout import rig


@contextlib.contextmanager
def cluster_of(head_cpus, *worker_cpus):
    """A cluster that this process has joined: a head node, and others with these many cores."""
    if ray.is_initialized():
        ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus})
    for num_cpus in worker_cpus:
        nodes.add_node(num_cpus=num_cpus)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def opened(settings, fleet):
    """A new run on a fleet of the test rig's workers, with its first checkpoint, and its store."""
    run_dir = Path(settings.run_dir)
    run_dir.mkdir()
    opening = Opening(settings, run_dir)
    widths = rig.SIXTEEN.d_model, image_dim(rig.SIXTEEN)
    run = opening.run(fleet, Preflight(widths=widths), None)
    run.reporter.begin_at(0)
    run.commit()
    return run, opening.store()

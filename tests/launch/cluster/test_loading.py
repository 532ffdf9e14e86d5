"""A slow disk: actors that prepare their next samples wait for it less."""

import functools
import time

import pytest
import ray

from launch.cluster.config import ClusterConfig
from launch.cluster.connection import connect
from launch.cluster.fleet import RayFleet, publish
from policy.weights import PolicyWeights, weights_sha256
from rollout.requests import GroupRequest
from rollout.worker import RolloutWorker
from tests import launch_rig
from tests.rollout import rig

DELAY_S = 0.4
NUM_GROUPS = 12


class SlowTask(rig.NoiseTask):
    """Training samples that take their time."""

    def sample(self, split, index):
        if split == "train" and index >= 1000:
            time.sleep(DELAY_S)
        return super().sample(split, index)


def slow_worker(threads):
    executor = launch_rig.worker().executor
    return RolloutWorker(executor, SlowTask(), loader_threads=threads)


def waiting(threads):
    """Seconds that the one actor waited for samples in a batch, and the share that it was busy."""
    config = ClusterConfig(num_actors=1, start_timeout_s=400, step_timeout_s=400)
    options = {"loader_threads": threads, "actor_options": {"num_cpus": 0}}
    fleet = RayFleet(functools.partial(slow_worker, threads), config, **options)
    try:
        arrays = rig.controller(seed=0).to_numpy()
        weights = PolicyWeights(version=0, sha256=weights_sha256(arrays), arrays=arrays)
        requests = [
            GroupRequest(
                group_id=number,
                run_seed=0,
                step=0,
                split="train",
                index=1000 + number,
                budget_ms=50.0,
                group_size=2,
            )
            for number in range(NUM_GROUPS)
        ]
        fleet._measure()  # forgets the time that the start took
        started = time.perf_counter()
        groups = fleet.collect(fleet.submit(requests, launch_rig.setup(), publish(weights)))
        took_s = time.perf_counter() - started
        assert [group.index for group in groups] == [request.index for request in requests]
        return took_s * fleet.stats.waiting_share["rollout-0"], fleet.stats.busy_share["rollout-0"]
    finally:
        fleet.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_loading_overlaps_with_the_device():
    if ray.is_initialized():
        ray.shutdown()
    connect("local", num_cpus=2)
    try:
        alone_s, busy_alone = waiting(0)
        ahead_s, busy_ahead = waiting(3)
    finally:
        ray.shutdown()
    print(f"waiting {alone_s:.1f} and {ahead_s:.1f} s, busy {busy_alone:.0%}, {busy_ahead:.0%}")
    assert ahead_s < alone_s / 3
    assert busy_ahead > busy_alone

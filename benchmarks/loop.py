"""The driver's own cost: the fleet with many simulated actors that sleep instead of computing.

The real `RayFleet` hands out groups to N logical actors. All of them live in a few asynchronous
Ray actors, where each serves one call at a time and sleeps; what is measured is everything that
the driver does: dispatch, collection, checks.

python -m benchmarks.loop [--actors 256] [--sleep 1.0]
"""

import argparse
import asyncio
import time
from types import SimpleNamespace

import numpy as np
import ray

from envs.spec import BudgetRange, BudgetSampler
from launch.cluster import RayFleet
from launch.recipes import ClusterConfig
from launch.training import controller_config
from rollout.actor import ActorFacts, PublishedWeights, Timed
from rollout.batch import GroupRollout
from rollout.latency.clock import DeviceFacts
from rollout.worker import GroupRequest, PolicySetup

WIDTH, GROUP_SIZE = 2048, 8
FACTS = DeviceFacts(device="simulated", dtype="bfloat16", torch_version="none", num_threads=1)


class Pool:
    """Many logical actors in one process."""

    def __init__(self, sleep_s: float) -> None:
        self.sleep_s = sleep_s
        self.locks: dict[str, asyncio.Lock] = {}

    async def start(self, name: str, incarnation: int) -> ActorFacts:
        return ActorFacts(
            name=name,
            incarnation=incarnation,
            node="",
            pid=0,
            facts=FACTS,
            reference_latency_ms=1.0,
        )

    async def rollout(self, name, incarnation, request, setup, weights) -> Timed:
        async with self.locks.setdefault(name, asyncio.Lock()):
            await asyncio.sleep(self.sleep_s)
        group = GroupRollout(
            group_id=request.group_id,
            sample_id="sleep",
            task="sleep",
            budget_ms=request.budget_ms,
            policy_version=weights.version,
            policy_sha256=weights.sha256,
            language_feature=np.zeros(WIDTH, np.float32),
            actions=np.zeros((GROUP_SIZE, 4), np.int64),
            log_probs=np.zeros((GROUP_SIZE, 4), np.float32),
            latency_tokens=np.zeros((GROUP_SIZE, WIDTH), np.float32),
            scores=np.zeros(GROUP_SIZE, np.float32),
            latencies_ms=np.ones(GROUP_SIZE),
            answers=("",) * GROUP_SIZE,
            stages_ms=({"simulated": 1.0},) * GROUP_SIZE,
            actor=name,
            incarnation=incarnation,
        )
        return Timed(value=group, seconds=self.sleep_s, actor=name, incarnation=incarnation)


class SimulatedActors:
    """Stands where the fleet expects an actor class; its handles speak to a pool."""

    def __init__(self, pools) -> None:
        self.pools = pools

    def options(self, **_options):
        return self

    def remote(self, _build, name: str, incarnation: int, _threads: int):
        pool = self.pools[int(name.rpartition("-")[2]) % len(self.pools)]
        return SimpleNamespace(
            start=SimpleNamespace(remote=lambda: pool.start.remote(name, incarnation)),
            rollout=SimpleNamespace(
                remote=lambda *call: pool.rollout.remote(name, incarnation, *call)
            ),
        )


class SimulatedFleet(RayFleet):
    """The fleet with another actor class, and nothing else changed."""

    def __init__(self, pools, config: ClusterConfig) -> None:
        self.pools = pools
        super().__init__(lambda: None, config)

    def _start(self, slot) -> None:
        self.actor_class = SimulatedActors(self.pools)
        super()._start(slot)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=256)
    parser.add_argument("--sleep", type=float, default=1.0, help="seconds a group")
    parser.add_argument("--rounds", type=int, default=4, help="groups an actor in a batch")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False)
    pool_class = ray.remote(num_cpus=0, max_concurrency=1000)(Pool)
    pools = [pool_class.remote(options.sleep) for _ in range(2)]
    fleet = SimulatedFleet(pools, ClusterConfig(num_actors=options.actors))
    budgets = BudgetSampler(range=BudgetRange(low_ms=100, high_ms=200), feasible_from_ms=120)
    setup = PolicySetup(controller=controller_config(WIDTH, budgets), budgets=budgets)
    weights = PublishedWeights(version=0, sha256="none", refs=())
    count = options.actors * options.rounds
    ideal_s = options.rounds * options.sleep
    for step in range(options.steps):
        requests = [
            GroupRequest(
                group_id=step * count + i,
                run_seed=0,
                step=step,
                split="train",
                index=i,
                budget_ms=150.0,
                group_size=GROUP_SIZE,
            )
            for i in range(count)
        ]
        started, cpu = time.perf_counter(), time.process_time()
        groups = fleet.collect(fleet.submit(requests, setup, weights))
        elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        assert len(groups) == count
        print(
            f"step {step}: {count} groups by {options.actors} actors in {elapsed_s:.2f} s, "
            f"{ideal_s / elapsed_s:.1%} of the ideal; driver {cpu_s:.2f} s of CPU, "
            f"{1e3 * cpu_s / count:.2f} ms a group"
        )


if __name__ == "__main__":
    main()

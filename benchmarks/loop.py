"""Measures how busy the recipe `molmoe-h100` keeps its devices, with actors that only sleep.

    python -m benchmarks.loop --actors 64 --sleep-s 1.0 --max-staleness 1

The loop of `launch/joint_grpo.py` runs with the real fleet, checkpoints, reports, and the real
learner at full width; only the rollout actors sleep instead of computing. All of them live in a
few asynchronous Ray actors, in which each serves one call at a time. Prints the share of time in
which the actors were busy, the driver's time by part of a step, and what the learner hands over
after a step and holds in memory.
"""

import sys
from dataclasses import dataclass

from benchmarks.options import read_options
from envs.checks import check_within
from launch.cluster.console import check_first, one_clear_error
from launch.run.recipes import molmoe_h100


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """One measurement.

    Attributes:
        quick: few actors that sleep briefly, to see within a minute that it runs.
        actors: number of rollout actors.
        sleep_s: seconds that an actor sleeps per group.
        steps: number of steps of the run; the first two do not count.
        max_staleness: how many steps actors may be ahead.
    """

    quick: bool = False
    actors: int = 64
    sleep_s: float = 1.0
    steps: int = 8
    max_staleness: int = molmoe_h100().max_staleness

    def __post_init__(self) -> None:
        check_within(self, "steps", low=3)


QUICK = LoopConfig(quick=True, actors=2, sleep_s=0.01, steps=3)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray

from envs.budgets import BudgetSampler
from envs.calibration import Calibration
from launch.cluster.actor_pool import ActorPool
from launch.cluster.config import ClusterConfig
from launch.cluster.connection import connect
from launch.cluster.fleet import RayFleet
from launch.cluster.membership import Membership
from launch.cluster.remote_learner import RemoteLearner
from launch.joint_grpo import train
from launch.run.recipes import JointGRPOConfig
from launch.run.reporting import Reporter
from launch.run.state import Run
from learner.checkpoint import CheckpointStore
from learner.lambda_control import LambdaControl
from policy.config import PolicySetup
from policy.weights import PolicyWeights
from rollout.actor import ActorFacts, Timed
from rollout.fingerprint import Fingerprint
from rollout.group_rollout import GroupRollout
from rollout.latency.clock import DeviceFacts
from rollout.requests import GradientRequest, GroupRequest, ScoreRequest

WIDTH = 2048
FACTS = DeviceFacts(
    device="asleep", dtype="bfloat16", torch_version="none", num_threads=1, clock="asleep"
)
FINGERPRINT = Fingerprint(
    architecture="none",
    weights="none",
    dtype="bfloat16",
    device="asleep",
    runtime="none",
    clock="asleep",
    tasks=("sleep",),
    importance="none",
    max_new_tokens=64,
    budget_scope="total",
)
GRADIENT_SHARE = 0.05
"""Duration of a vector-Jacobian product relative to that of its group's rollout."""


SCORE_SHARE = 0.1
"""Duration of an answer off the clock relative to a group's rollout."""


class Pool:
    """Many simulated rollout actors in one process."""

    def __init__(self, sleep_s: float) -> None:
        self.sleep_s = sleep_s
        self.locks: dict[str, asyncio.Lock] = {}

    async def start(self, name: str, incarnation: int) -> ActorFacts:
        """As `rollout.actor`."""
        return ActorFacts(
            name=name,
            incarnation=incarnation,
            node="",
            pid=0,
            facts=FACTS,
            fingerprint=FINGERPRINT,
            reference_latency_ms=1.0,
            census={},
        )

    async def work(self, name: str, seconds: float) -> None:
        """Keeps one actor busy."""
        async with self.locks.setdefault(name, asyncio.Lock()):
            await asyncio.sleep(seconds)

    async def rollout(
        self,
        name: str,
        incarnation: int,
        request: GroupRequest,
        setup: PolicySetup,
        weights: PolicyWeights,
    ) -> Timed:
        """A group of made-up outcomes, once its time has passed."""
        await self.work(name, self.sleep_s)
        rng, size = np.random.default_rng(request.group_id), request.group_size
        group = GroupRollout(
            group_id=request.group_id,
            split=request.split,
            index=request.index,
            sample_id="sleep",
            task="sleep",
            budget_ms=request.budget_ms,
            price=request.price,
            policy_version=weights.version,
            policy_sha256=weights.sha256,
            budget_token=np.zeros(WIDTH, np.float32),
            language_feature=rng.normal(size=WIDTH).astype(np.float32),
            image_feature=np.zeros(0, np.float32),
            actions=np.zeros((size, 4), np.int64),
            log_probs=np.full((size, 4), -1.0, np.float32),
            latency_tokens=rng.normal(size=(size, WIDTH)).astype(np.float32),
            scores=rng.integers(0, 2, size).astype(np.float32),
            latencies_ms=rng.uniform(100, 200, size),
            feasible=True,
            clock="asleep",
            device_budget_ms=request.budget_ms,
            device_ms=np.full(size, 100.0),
            wall_ms=np.full(size, 100.0),
            num_text_tokens=0,
            num_vision_tokens=np.zeros(size, np.int64),
            num_output_tokens=np.zeros(size, np.int64),
            tilings=((0, 0),) * size,
            answers=("",) * size,
            stages_ms=({"asleep": 1.0},) * size,
            actor=name,
            incarnation=incarnation,
        )
        return Timed(
            value=group, seconds=self.sleep_s, waited_s=0.0, actor=name, incarnation=incarnation
        )

    async def status(self, name: str, _incarnation: int) -> dict[str, Any]:
        """The actor is alive."""
        return {"name": name, "downloaded": 0}

    async def score(self, name: str, incarnation: int, request: ScoreRequest) -> Timed:
        """Made-up scores, once their time has passed."""
        shape = request.actions_SE4.shape[:2]
        seconds = SCORE_SHARE * self.sleep_s * shape[0] * shape[1]
        await self.work(name, seconds)
        value = np.zeros(shape, np.float32)
        return Timed(
            value=value, seconds=seconds, waited_s=0.0, actor=name, incarnation=incarnation
        )

    async def budget_gradient(self, name: str, incarnation: int, request: GradientRequest) -> Timed:
        """A made-up gradient, once its time has passed."""
        seconds = GRADIENT_SHARE * self.sleep_s
        await self.work(name, seconds)
        value = request.gradients_GD.sum(0)
        return Timed(
            value=value, seconds=seconds, waited_s=0.0, actor=name, incarnation=incarnation
        )


class SleepingActors:
    """Takes the place of the fleet's actor class; its handles talk to a pool."""

    def __init__(self, pools: Sequence[Any]) -> None:
        self.pools = pools

    def options(self, **_options: Any) -> "SleepingActors":
        """Ray's options, which do not matter here."""
        return self

    def remote(self, _build: Any, name: str, incarnation: int, *_more: Any) -> SimpleNamespace:
        """The handle of an actor in one of the pools."""
        pool = self.pools[int(name.rpartition("-")[2]) % len(self.pools)]

        def method(remote: Any) -> SimpleNamespace:
            return SimpleNamespace(remote=lambda *call: remote.remote(name, incarnation, *call))

        methods = ("status", "start", "rollout", "score", "budget_gradient")
        return SimpleNamespace(**{m: method(getattr(pool, m)) for m in methods})


def sleeping_fleet(pools: Sequence[Any], config: ClusterConfig) -> RayFleet:
    """The fleet with another actor class, and nothing else changed."""

    class SleepingMembership(Membership):
        def start(self, slot: Any) -> None:
            self.actor_class = SleepingActors(pools)
            super().start(slot)

    class SleepingPool(ActorPool):
        membership_class = SleepingMembership

    class SleepingFleet(RayFleet):
        pool_class = SleepingPool

    no_worker: Any = lambda: None  # noqa: E731
    return SleepingFleet(no_worker, config)


class Unevaluated(Run):
    """A run without evaluations, because its actors cannot answer anything."""

    __slots__ = ()

    def _is_evaluation_due(self) -> bool:
        return False


def make_run(fleet: RayFleet, config: JointGRPOConfig, folder: Path) -> Run:
    """A run of the recipe on this fleet, with its checkpoints in a folder."""
    budgets = BudgetSampler.between(100, 200)
    setup = PolicySetup.of(WIDTH, 0, budgets)
    reporter = Reporter(folder, num_steps=config.steps, clock="asleep")
    reporter.begin_at(0)
    return Unevaluated(
        config=config,
        setup=setup,
        fleet=fleet,
        learner=RemoteLearner(
            setup.controller,
            config.learner,
            seed=config.seed,
            timeout_s=config.cluster.learner_timeout_s,
        ),
        reporter=reporter,
        store=CheckpointStore(folder / "checkpoints", config.keep_last),
        lambda_control=LambdaControl(config.pid, budgets),
        calibration=Calibration(cheapest_ms=100, full_ms=200, scatter=0.0, num_samples=1),
    )


def main() -> int:
    """Runs the loop, and prints how busy actors and driver were."""
    options = read_options(QUICK, __doc__)
    connect("local")
    actors: Any = ray.remote(Pool)
    pool_class = actors.options(num_cpus=0, max_concurrency=1000)
    pools = [pool_class.remote(options.sleep_s) for _ in range(2)]
    fleet = sleeping_fleet(pools, ClusterConfig(num_actors=options.actors))
    recipe = replace(molmoe_h100(), steps=options.steps, max_staleness=options.max_staleness)
    config = recipe.sized_for(options.actors)
    with tempfile.TemporaryDirectory() as name:
        run = make_run(fleet, config, Path(name))
        started, cpu = time.perf_counter(), time.process_time()
        train(run)
        elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        rows = run.reporter.rows()[2:]
        run.reporter.close()
    busy = [np.mean([v for k, v in r.items() if k.startswith("fleet_busy/")]) for r in rows]
    groups = config.groups_per_step * config.steps
    print(
        f"{options.actors} actors, {config.groups_per_step} groups of {config.group_size} per step,"
        f" staleness {config.max_staleness}: {groups} groups in {elapsed_s:.1f} s; actors busy "
        f"{np.median(busy):.0%} of the time (median step, {min(busy):.0%} to {max(busy):.0%}); "
        f"driver {1e3 * cpu_s / groups:.1f} ms of CPU per group"
    )
    for part in ("broadcast", "checkpoint", "wait", "score", "gradient", "learn"):
        seconds = [row.get(f"time/{part}_s", 0.0) for row in rows]
        print(f"  {part:<11}{np.median(seconds):7.3f} s per step")
    for name in ("state_mb", "memory_mb"):
        sizes = [row[f"learner/{name}"] for row in rows]
        print(f"  learner/{name}: {np.median(sizes):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

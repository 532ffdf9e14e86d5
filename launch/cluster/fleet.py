"""The fleet of rollout actors: runs groups, gradients and measurements on free actors."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from envs.calibration import Calibration
from envs.spec import Knobs
from launch.cluster.actor_pool import ActorPool
from launch.cluster.census import empty_split
from launch.cluster.config import ClusterConfig
from launch.cluster.connection import is_own_cluster, wait_for_gpu, wait_for_nodes
from launch.cluster.progress import counted
from launch.cluster.slots import Job
from policy.config import PolicySetup
from policy.weights import PolicyWeights
from rollout.actor import PublishedWeights, Timed
from rollout.build import build_worker
from rollout.fleet import FleetStats, replacement
from rollout.group_rollout import GroupRollout
from rollout.latency.simulated import SimulatedLatency
from rollout.profiling.records import ProfileRecord
from rollout.requests import (
    AnyRequest,
    FailedGroup,
    GradientRequest,
    GreedyRequest,
    GroupRequest,
    Prefixes,
    PrefixRequest,
    ScoreRequest,
)
from rollout.worker import RolloutWorker
from rollout.worker_config import WorkerConfig

MEASURING_ROUNDS = 4
"""Number of measurements of each sample per actor when the devices are measured."""


class RayFleet:
    """Rollout actors; implements `rollout.fleet.Fleet` for `PublishedWeights`.

    Args:
        build: builds a worker inside an actor's process.
        config: number of actors and time limits.
        options: further arguments of `ActorPool`.

    Raises:
        RuntimeError: see `ActorPool`.
    """

    pool_class = ActorPool

    def __init__(
        self, build: Callable[[], RolloutWorker], config: ClusterConfig, **options: Any
    ) -> None:
        self.pool = self.pool_class(build, config, **options)
        self.config = config
        self._batches: dict[int, tuple[list[AnyRequest], PolicySetup, PublishedWeights]] = {}
        self._jobs: dict[int, list[Job]] = {}
        self._next_ticket = 0
        self._measured_at = time.monotonic()
        self._counts_then: dict[str, np.ndarray] = {}

    @property
    def stats(self) -> FleetStats:
        """Counts since the start of the run, and busy shares of the last batch."""
        return self.pool.stats

    @property
    def num_actors(self) -> int:
        """Number of actors that have a place on the cluster: warm ones, and those that load."""
        return self.pool.members.num_placed

    def submit(
        self, requests: Sequence[AnyRequest], setup: PolicySetup, weights: PublishedWeights
    ) -> int:
        """Queues one job per group and hands out as many as there is room for."""
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._batches[ticket] = (list(requests), setup, weights)
        self._jobs[ticket] = [_rollout_job(request, setup, weights) for request in requests]
        self.pool.queue.extend(self._jobs[ticket])
        self.pool.dispatch()
        return ticket

    def collect(self, ticket: int) -> list[GroupRollout]:
        """Waits for all groups of a batch; groups with an unusable sample are replaced."""
        requests, setup, weights = self._batches[ticket]
        by_id = {request.group_id: request for request in requests}
        jobs, groups = self._jobs[ticket], []
        for attempt in range(1000):
            self.pool.run(jobs, "groups of rollouts", self.config.step_timeout_s)
            results = [job.result.value for job in jobs if job.result is not None]
            groups += [result for result in results if isinstance(result, GroupRollout)]
            failed = [result for result in results if isinstance(result, FailedGroup)]
            if not failed:
                break
            self.stats.failed_samples += len(failed)
            for failure in failed:
                old = by_id[failure.group_id]
                by_id[failure.group_id] = replacement(old, failure, attempt)
            jobs = [_rollout_job(by_id[f.group_id], setup, weights) for f in failed]
            self.pool.queue.extend(jobs)
        del self._batches[ticket], self._jobs[ticket]
        self._measure()
        return sorted(groups, key=lambda group: group.group_id)

    def evaluate(
        self, requests: Sequence[GreedyRequest], setup: PolicySetup, weights: PublishedWeights
    ) -> list[GroupRollout]:
        """Runs greedy episodes; those with an unusable sample are replaced."""
        return self.collect(self.submit(requests, setup, weights))

    def drop_batches(self) -> None:
        """Drops all submitted batches that were not collected; running calls are ignored."""
        for job in (job for jobs in self._jobs.values() for job in jobs):
            job.is_dropped = True
        kept = [job for job in self.pool.queue if not job.is_dropped]
        self.pool.queue.clear()
        self.pool.queue.extend(kept)
        self._batches.clear()
        self._jobs.clear()

    def budget_gradients(
        self, groups: Sequence[GroupRollout], gradients: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Vector-Jacobian products, on the actors that ran the groups if they are still alive."""
        jobs = {
            group.group_id: _gradient_job(group, gradient)
            for group, gradient in zip(groups, gradients, strict=True)
            if gradient.any()
        }
        self.pool.queue.extendleft(jobs.values())
        self.pool.run(list(jobs.values()), "budget gradients", self.config.step_timeout_s)
        done = {i: job.result.value for i, job in jobs.items() if job.result is not None}
        return [
            done[group.group_id] if group.group_id in done else np.zeros_like(gradient[0])
            for group, gradient in zip(groups, gradients, strict=True)
        ]

    def scores(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Scores of configurations, answered between groups.

        Each request is one call, or several if one could come near the time limit of a call.
        """
        full_ms = self.pool.first_facts().reference_latency_ms
        most = pairs_within(full_ms, self.config.group_timeout_s)
        parts = [request.in_parts(most) for request in requests]
        jobs = [_score_job(part) for parts_of_request in parts for part in parts_of_request]
        self.pool.queue.extendleft(reversed(jobs))
        self.pool.run(jobs, "configurations to score", self.config.step_timeout_s)
        scores = iter([job.result.value for job in jobs if job.result is not None])
        return [np.concatenate([next(scores) for _ in of_request]) for of_request in parts]

    def extreme_latencies(self, split: str, num_samples: int) -> np.ndarray:
        """Latencies of the cheapest and the full configuration in ms: [rounds, N, 2].

        Samples are handed out to all actors at once, so that the driver disturbs them as much as in
        training, and often enough to average over a fluctuating clock.
        """
        rounds = MEASURING_ROUNDS * self.num_actors
        calls = [
            lambda h, i=index: h.extreme_latencies.remote(split, i)
            for _ in range(rounds)
            for index in range(num_samples)
        ]
        latencies = list(self.run_each(calls, "latency measurements"))
        return np.array(latencies).reshape(rounds, num_samples, 2)

    def cheapest_ms(
        self,
        split: str,
        indices: Sequence[int],
        repeats: int,
        calibration: Calibration | None,
    ) -> np.ndarray:
        """Repeated latencies of the cheapest configuration in calibrated ms: [N, repeats]."""
        calls = [
            lambda h, i=index: h.cheapest_ms.remote(split, i, repeats, calibration)
            for index in indices
        ]
        return np.array(list(self.run_each(calls, "runs of the cheapest configuration")))

    def run_each(self, calls: Sequence[Callable[[Any], Any]], what: str) -> Iterator[Any]:
        """Runs each call on whichever actor is free, and yields the results in order.

        It says how many are done.
        """
        jobs = [Job(what=f"one of the {what}", call=call) for call in calls]
        self.pool.queue.extend(jobs)
        for job in counted(jobs, what):
            self.pool.run([job], what, self.config.step_timeout_s)
            assert job.result is not None
            yield job.result.value

    def profile(
        self,
        configurations: Sequence[Knobs],
        split: str,
        indices: Iterable[int],
        what: str,
        calibration: Calibration | None = None,
    ) -> Iterator[list[ProfileRecord]]:
        """Runs configurations on samples; yields each sample's records in the order of `indices`.

        Work that the configurations of one call share runs once. With a calibration the records
        have its milliseconds too.
        """
        plan = [(index, configurations) for index in indices]
        return self.profile_each(plan, split, what, calibration)

    def profile_each(
        self,
        plan: Sequence[tuple[int, Sequence[Knobs]]],
        split: str,
        what: str,
        calibration: Calibration | None = None,
    ) -> Iterator[list[ProfileRecord]]:
        """`profile` with configurations of its own for each sample."""
        full_ms = self.pool.first_facts().reference_latency_ms
        parts = [
            (index, in_parts(configurations, full_ms, self.config.group_timeout_s))
            for index, configurations in plan
        ]
        calls = [
            functools.partial(
                _profile, configurations=part, split=split, index=index, calibration=calibration
            )
            for index, parts_of_sample in parts
            for part in parts_of_sample
        ]
        results = self.run_each(calls, what)
        for _, parts_of_sample in parts:
            yield [record for _ in parts_of_sample for record in next(results)]

    def prefixes(self, requests: Sequence[PrefixRequest]) -> list[Prefixes]:
        """Language features and latency tokens, for a warm start."""
        calls = [lambda h, r=request: h.prefixes.remote(r) for request in requests]
        return list(self.run_each(calls, "prefixes"))

    @property
    def clock_name(self) -> str:
        """The clock of the first warm actor; all actors have the same."""
        return self.pool.first_facts().facts.clock

    def shutdown(self) -> None:
        """Kills all actors."""
        self.pool.shutdown()

    def _measure(self) -> None:
        """Updates busy shares and the slowest actor since the last batch was collected."""
        now = time.monotonic()
        elapsed_s, self._measured_at = max(now - self._measured_at, 1e-9), now
        busy, waiting, means = {}, {}, {}
        for slot in self.pool.members.ready:
            present = np.array([slot.busy_s, slot.waited_s, slot.num_done])
            busy_s, waited_s, num_done = present - self._counts_then.get(slot.name, np.zeros(3))
            self._counts_then[slot.name] = present
            busy[slot.name] = float(min(busy_s / elapsed_s, 1.0))
            waiting[slot.name] = float(min(waited_s / elapsed_s, 1.0))
            means[slot.name] = busy_s / num_done if num_done else 0.0
        self.stats.busy_share, self.stats.waiting_share = busy, waiting
        self.stats.slowest = max(means, key=lambda name: means[name], default="")


def _rollout_job(request: AnyRequest, setup: PolicySetup, weights: PublishedWeights) -> Job:
    def check(timed: Timed) -> str:
        group = timed.value
        if isinstance(group, FailedGroup):
            return ""
        proof = (group.policy_version, group.policy_sha256, group.actor, group.incarnation)
        owed = (weights.version, weights.sha256, timed.actor, timed.incarnation)
        return "" if proof == owed else f"group {group.group_id} proves {proof}, not {owed}"

    def call(handle: Any) -> Any:
        method = handle.rollout if isinstance(request, GroupRequest) else handle.greedy
        return method.remote(request, setup, weights)

    return Job(
        what=f"group {request.group_id} ({request.split} sample {request.index})",
        call=call,
        check=check,
        num_episodes=request.group_size if isinstance(request, GroupRequest) else 1,
        sample=(request.split, request.index),
    )


def _gradient_job(group: GroupRollout, gradient_GD: np.ndarray) -> Job:
    request = GradientRequest.of(group, gradient_GD)
    return Job(
        what=f"the budget gradient of group {group.group_id}",
        call=lambda handle: handle.budget_gradient.remote(request),
        prefer=group.actor,
    )


def _score_job(request: ScoreRequest) -> Job:
    return Job(
        what=f"scores of {request.split} samples {request.indices}",
        call=lambda handle: handle.score.remote(request),
    )


def _profile(
    handle: Any,
    *,
    configurations: tuple[Knobs, ...],
    split: str,
    index: int,
    calibration: Calibration | None,
) -> Any:
    return handle.profile.remote(configurations, split, index, calibration)


def pairs_within(full_ms: float, limit_s: float) -> int:
    """How many full configurations fit into a quarter of a call's time limit, at least one."""
    return max(1, int(0.25 * limit_s * 1e3 / full_ms))


def in_parts(
    configurations: Sequence[Knobs], full_ms: float, limit_s: float
) -> list[tuple[Knobs, ...]]:
    """Splits configurations into calls that stay far below the time limit of one call.

    A call would take a quarter of the limit if every configuration took as long as the full one on
    the fleet's reference sample. Configurations of one call share the work they have in common.
    """
    size = pairs_within(full_ms, limit_s)
    return [tuple(configurations[i : i + size]) for i in range(0, len(configurations), size)]


def publish(weights: PolicyWeights) -> PublishedWeights:
    """Puts weights into Ray's object store, owned by the caller."""
    refs = (ray.put(dict(weights.arrays)),)
    return PublishedWeights(version=weights.version, sha256=weights.sha256, refs=refs)


def placed(worker: WorkerConfig) -> WorkerConfig:
    """The worker configuration with its device decided for the whole cluster.

    `auto` is decided here, by what the cluster has, because actors that decide for themselves could
    differ from node to node.

    Raises:
        ValueError: cuda was requested and the cluster has no GPU.
    """
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    if worker.device == "cuda" and not has_gpus:
        raise ValueError(
            f"device cuda was requested and the cluster has {ray.cluster_resources().get('CPU', 0)}"
            " CPU cores and no GPU: start Ray with GPUs, or give --worker.device cpu"
        )
    return replace(worker, device="cuda" if has_gpus and worker.device != "cpu" else "cpu")


def check_census(
    worker: WorkerConfig, census: Mapping[str, Mapping[str, int]], *splits: str
) -> None:
    """Refuses data sets that have no sample in a split that is needed.

    Args:
        worker: names the tasks.
        census: samples of each data set by split; tasks that are rendered are not in it.
        splits: what is needed.

    Raises:
        ValueError: no task has samples in one of the splits.
    """
    for split in splits:
        if problem := empty_split(census, worker.tasks, split, "--worker.data"):
            raise ValueError(problem)


def open_fleet(
    worker: WorkerConfig,
    cluster: ClusterConfig,
    *,
    simulated: SimulatedLatency | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> RayFleet:
    """Opens a fleet with one actor per GPU, or per core if the device is the CPU.

    All programs open their fleets here. Ray does not hide GPUs from actors that requested none, so
    an actor on a GPU has to request it.
    """
    wait_for_nodes(cluster.num_nodes, cluster.start_timeout_s, is_stopping)
    if worker.device == "cuda" and not is_own_cluster(cluster.address):
        wait_for_gpu(cluster.start_timeout_s, is_stopping)
    worker = placed(worker)
    return RayFleet(
        functools.partial(build_worker, worker, simulated=simulated),
        cluster,
        num_threads=worker.num_threads,
        loader_threads=worker.loader_threads,
        wants_gpu=worker.device == "cuda",
        is_stopping=is_stopping,
        downloads=worker.model,
    )

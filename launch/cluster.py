"""Actor lifecycle over Ray: start, pull work, notice loss, start again, and never wait for ever."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from launch.jobs import LOST, Job, Slot, kill, last_line
from launch.recipes import ClusterConfig
from launch.training import Stopped
from rollout.actor import ActorFacts, PublishedWeights, RolloutActor, Timed
from rollout.batch import GroupRollout
from rollout.fleet import FleetStats, replacement
from rollout.latency.clock import DeviceFacts
from rollout.worker import (
    FailedGroup,
    GroupRequest,
    PolicySetup,
    Prefixes,
    PrefixRequest,
    RolloutWorker,
)

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Calls handed to an actor at a time: one runs, one waits, so that the driver is never awaited."""

POLL_S = 0.5

MEASURING_ROUNDS = 4
"""Times that each sample is measured for every actor, to tell how fast they are."""


class RayFleet:
    """Rollout actors; implements `rollout.fleet.Fleet` for `PublishedWeights`.

    Args:
        build: makes a worker inside an actor's process.
        config: sizes and limits.
        num_threads: of a CPU actor.
        wants_gpu: one whole GPU for each actor, else one core.
        is_stopping: asked while waiting; True raises Stopped.

    Raises:
        RuntimeError: the cluster cannot hold `min_actors`, or an actor cannot be constructed; the
            message says what was asked for and what the cluster has.
    """

    def __init__(
        self,
        build: Callable[[], RolloutWorker],
        config: ClusterConfig,
        *,
        num_threads: int = 1,
        wants_gpu: bool = False,
        is_stopping: Callable[[], bool] = lambda: False,
        actor_options: dict[str, Any] | None = None,
    ) -> None:
        self.build, self.config, self.num_threads = build, config, num_threads
        self.is_stopping = is_stopping
        self.stats = FleetStats()
        resources = {"num_gpus": 1} if wants_gpu else {"num_cpus": 1}
        self.options = {**resources, **(actor_options or {})}
        remote: Any = ray.remote
        self.actor_class = remote(concurrency_groups={"health": 1})(RolloutActor)
        count = config.num_actors or int(
            ray.cluster_resources().get("GPU" if wants_gpu else "CPU", 0)
        )
        if max(count, 1) < config.min_actors:
            raise RuntimeError(
                f"{config.min_actors} rollout actors are the stated minimum and the cluster has "
                f"room for {count}: {self._asked_and_has()}"
            )
        self.slots = [Slot(name=f"rollout-{index}") for index in range(max(count, 1))]
        self._queue: deque[Job] = deque()
        self._batches: dict[int, list[Job]] = {}
        self._requests: dict[int, tuple[GroupRequest, PolicySetup, PublishedWeights]] = {}
        self._next_ticket = 0
        for slot in self.slots:
            self._start(slot)
        self._await_start()

    # -- the Fleet interface -------------------------------------------------------------------

    def submit(
        self, requests: Sequence[GroupRequest], setup: PolicySetup, weights: PublishedWeights
    ) -> int:
        """Queues one job for each group and hands out what there is room for."""
        jobs = [self._rollout_job(request, setup, weights) for request in requests]
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._batches[ticket] = jobs
        self._queue.extend(jobs)
        self._dispatch()
        return ticket

    def collect(self, ticket: int) -> list[GroupRollout]:
        """Waits until every group of the batch is whole."""
        jobs = self._batches.pop(ticket)
        busy_before = {slot.name: (slot.busy_s, slot.num_done) for slot in self.slots}
        started = time.monotonic()
        groups: list[GroupRollout] = []
        for attempt in range(1000):
            self._run(jobs, "groups of rollouts", self.config.step_timeout_s)
            results = [job.result.value for job in jobs if job.result is not None]
            groups += [result for result in results if isinstance(result, GroupRollout)]
            failed = [result for result in results if isinstance(result, FailedGroup)]
            if not failed:
                break
            jobs = [self._replace(failure, attempt) for failure in failed]
            self._queue.extend(jobs)
        self._measure(busy_before, time.monotonic() - started)
        return sorted(groups, key=lambda group: group.group_id)

    def budget_gradients(
        self, groups: Sequence[GroupRollout], gradients: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Vector-Jacobian products, on the actors that ran the groups where they still live."""
        jobs: dict[int, Job] = {}
        for group, gradient in zip(groups, gradients, strict=True):
            if gradient.any():
                jobs[group.group_id] = self._gradient_job(group, gradient)
        self._queue.extendleft(jobs.values())
        self._run(list(jobs.values()), "budget gradients", self.config.step_timeout_s)
        for group in groups:
            self._requests.pop(group.group_id, None)
        done = {i: job.result.value for i, job in jobs.items() if job.result is not None}
        return [
            done[group.group_id] if group.group_id in done else np.zeros_like(gradient[0])
            for group, gradient in zip(groups, gradients, strict=True)
        ]

    def end_latencies(self, split: str, num_samples: int) -> np.ndarray:
        """Of the cheapest and the full configuration in ms: [rounds, N, 2].

        Handed out sample by sample to all actors at once, so that the driver disturbs them as it
        does in training; long enough for a clock that wavers.
        """
        rounds = MEASURING_ROUNDS * len(self.slots)
        calls = [
            lambda h, i=index: h.end_latencies.remote(split, i)
            for _ in range(rounds)
            for index in range(num_samples)
        ]
        latencies = list(self.run_each(calls, "latency measurements"))
        return np.array(latencies).reshape(rounds, num_samples, 2)

    def run_each(self, calls: Sequence[Callable[[Any], Any]], what: str) -> Iterator[Any]:
        """Runs one call for each on whichever actor is free, and yields the values in order."""
        jobs = [Job(call=call) for call in calls]
        self._queue.extend(jobs)
        for job in jobs:
            self._run([job], what, self.config.step_timeout_s)
            assert job.result is not None
            yield job.result.value

    def prefixes(self, requests: Sequence[PrefixRequest]) -> list[Prefixes]:
        """Language features and latency tokens, for a warm start."""
        calls = [lambda h, r=request: h.prefixes.remote(r) for request in requests]
        return list(self.run_each(calls, "prefixes"))

    def device_facts(self) -> DeviceFacts:
        """Of the first warm actor."""
        return next(slot.facts.facts for slot in self.slots if slot.facts is not None)

    def shutdown(self) -> None:
        """Ends every actor."""
        for slot in self.slots:
            kill(slot.handle)

    # -- jobs ------------------------------------------------------------------------------------

    def _rollout_job(
        self, request: GroupRequest, setup: PolicySetup, weights: PublishedWeights
    ) -> Job:
        self._requests[request.group_id] = (request, setup, weights)

        def check(timed: Timed) -> str:
            group = timed.value
            if isinstance(group, FailedGroup):
                return ""
            proof = (group.policy_version, group.policy_sha256, group.actor, group.incarnation)
            owed = (weights.version, weights.sha256, timed.actor, timed.incarnation)
            return "" if proof == owed else f"group {group.group_id} proves {proof}, not {owed}"

        return Job(call=lambda handle: handle.rollout.remote(request, setup, weights), check=check)

    def _gradient_job(self, group: GroupRollout, gradient_GD: np.ndarray) -> Job:
        request, setup, weights = self._requests[group.group_id]
        return Job(
            call=lambda handle: handle.budget_gradient.remote(
                request, group.actions, gradient_GD, setup, weights
            ),
            prefer=group.actor,
        )

    def _replace(self, failure: FailedGroup, attempt: int) -> Job:
        self.stats.failed_samples += 1
        request, setup, weights = self._requests[failure.group_id]
        return self._rollout_job(replacement(request, failure, attempt), setup, weights)

    def _measure(self, before: dict[str, tuple[float, int]], elapsed_s: float) -> None:
        shares, means = {}, {}
        for slot in self.slots:
            busy_s, num_done = (
                slot.busy_s - before[slot.name][0],
                slot.num_done - before[slot.name][1],
            )
            shares[slot.name] = min(busy_s / max(elapsed_s, 1e-9), 1.0)
            means[slot.name] = busy_s / num_done if num_done else 0.0
        self.stats.busy_share = shares
        self.stats.slowest = max(means, key=lambda name: means[name])

    # -- the pump --------------------------------------------------------------------------------

    def _run(self, jobs: Sequence[Job], what: str, limit_s: float) -> None:
        """Hands out work and takes in results until all of `jobs` are done."""
        deadline = time.monotonic() + limit_s
        while missing := sum(job.result is None for job in jobs):
            if self.is_stopping():
                raise Stopped
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{missing} of {len(jobs)} {what} are not done after {limit_s:.0f} s "
                    f"({self._states()}): {self._asked_and_has()}"
                )
            self._pump()

    def _pump(self) -> None:
        self._dispatch()
        refs = [ref for slot in self.slots for ref in slot.jobs]
        refs += [slot.start_ref for slot in self.slots if slot.state == "starting"]
        if refs:
            ready, waiting = ray.wait(refs, num_returns=1, timeout=POLL_S)
            if ready and waiting:
                ready += ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
            for ref in ready:
                self._take(ref)
        self._expire()

    def _dispatch(self) -> None:
        ready = [slot for slot in self.slots if slot.state == "ready"]
        names = {slot.name for slot in ready}
        for room in range(1, IN_FLIGHT + 1):
            for slot in ready:
                if len(slot.jobs) >= room:
                    continue
                job = self._next_job(slot, names)
                if job is None:
                    continue
                if not slot.jobs:
                    slot.deadline = time.monotonic() + self.config.group_timeout_s
                slot.jobs[job.call(slot.handle)] = job

    def _next_job(self, slot: Slot, names: set[str]) -> Job | None:
        for job in self._queue:
            if job.prefer in ("", slot.name) or job.prefer not in names:
                self._queue.remove(job)
                return job
        return None

    def _take(self, ref: Any) -> None:
        owners = [s for s in self.slots if ref in s.jobs or ref is s.start_ref]
        if not owners:
            return  # its actor was lost a moment ago, and its groups are queued again
        slot = owners[0]
        try:
            value: Any = ray.get(ref, timeout=self.config.group_timeout_s)
        except RayTaskError as error:
            if not isinstance(error, LOST):
                raise
            self._lose(slot, str(error))
            return
        except (*LOST, GetTimeoutError) as error:
            self._lose(slot, str(error))
            return
        if ref is slot.start_ref:
            self._admit(slot, value)
        else:
            self._complete(slot, ref, value)

    def _complete(self, slot: Slot, ref: Any, timed: Timed) -> None:
        job = slot.jobs.pop(ref)
        slot.deadline = time.monotonic() + self.config.group_timeout_s
        problem = job.check(timed)
        if (timed.actor, timed.incarnation) != (slot.name, slot.incarnation):
            problem = f"{timed.actor} incarnation {timed.incarnation} answered for {slot.name}"
        if problem:
            self.stats.rejected += 1
            log.error("rejected and run again: %s", problem)
            self._queue.appendleft(job)
            return
        slot.failures = 0
        slot.busy_s += timed.seconds
        slot.num_done += 1
        job.result = timed

    def _expire(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.state == "ready" and slot.jobs and now > slot.deadline:
                self._lose(slot, f"no answer for {self.config.group_timeout_s:.0f} s")
            elif slot.state == "starting" and now > slot.deadline:
                limit = self.config.start_timeout_s
                self._lose(slot, f"not warm after {limit:.0f} s; {self._asked_and_has()}")

    # -- lifecycle -------------------------------------------------------------------------------

    def _start(self, slot: Slot) -> None:
        slot.incarnation += 1
        slot.state, slot.facts = "starting", None
        slot.deadline = time.monotonic() + self.config.start_timeout_s
        slot.handle = self.actor_class.options(
            **self.options,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self.num_threads)}},
        ).remote(self.build, slot.name, slot.incarnation, self.num_threads)
        slot.start_ref = slot.handle.start.remote()

    def _admit(self, slot: Slot, facts: ActorFacts) -> None:
        slot.state, slot.facts, slot.start_ref = "ready", facts, None
        log.info(
            "%s is warm: incarnation %d on %s, %s, %d threads, reference latency %.1f ms",
            slot.name,
            facts.incarnation,
            facts.facts.device,
            facts.facts.dtype,
            facts.facts.num_threads,
            facts.reference_latency_ms,
        )
        self._name_deviating()

    def _name_deviating(self) -> None:
        """A slow device would corrupt the rewards, so it is named."""
        known = {s.name: s.facts.reference_latency_ms for s in self.slots if s.facts is not None}
        median = float(np.median(list(known.values())))
        for name, latency_ms in known.items():
            if abs(latency_ms / median - 1) > self.config.latency_tolerance:
                log.warning(
                    "%s deviates: reference latency %.1f ms, the fleet's median is %.1f ms",
                    name,
                    latency_ms,
                    median,
                )

    def _lose(self, slot: Slot, reason: str) -> None:
        """Gives a lost actor's groups to others, whole, and starts it again."""
        summary = last_line(reason)
        if slot.facts is None and slot.incarnation == 0 and "Error" in summary:
            self.shutdown()
            raise RuntimeError(f"{slot.name} could not be started: {summary}")
        log.warning("%s is lost (%s): its groups run again", slot.name, summary)
        self._queue.extendleft(slot.jobs.values())
        self.stats.reruns += len(slot.jobs)
        slot.jobs = {}
        kill(slot.handle)
        slot.failures += 1
        if slot.failures > self.config.max_restarts:
            slot.state, slot.start_ref = "dead", None
        else:
            self.stats.restarts += 1
            self._start(slot)
        alive = sum(s.state != "dead" for s in self.slots)
        if alive < self.config.min_actors:
            raise RuntimeError(
                f"{alive} rollout actors are left and {self.config.min_actors} are the stated "
                f"minimum; the last one was lost: {summary}; {self._asked_and_has()}"
            )

    def _await_start(self) -> None:
        """Waits for the first incarnations; goes on with `min_actors` once the limit is reached."""
        deadline = time.monotonic() + self.config.start_timeout_s
        while any(slot.state == "starting" for slot in self.slots):
            if self.is_stopping():
                raise Stopped
            if time.monotonic() > deadline - POLL_S:
                break
            self._pump()
        ready = sum(slot.state == "ready" for slot in self.slots)
        if ready < self.config.min_actors:
            self.shutdown()
            raise RuntimeError(
                f"{ready} of {len(self.slots)} rollout actors were warm after "
                f"{self.config.start_timeout_s:.0f} s and {self.config.min_actors} are the stated "
                f"minimum: {self._asked_and_has()}"
            )

    def _states(self) -> str:
        return ", ".join(f"{s.name} {s.state} with {len(s.jobs)} calls" for s in self.slots[:8])

    def _asked_and_has(self) -> str:
        asked = {k.removeprefix("num_"): v for k, v in self.options.items() if k.startswith("num")}
        has = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        return f"each actor asks for {asked}, the cluster has {has}, free are {free}"

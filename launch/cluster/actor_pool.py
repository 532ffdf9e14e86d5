"""Lifecycle of the rollout actors: start, hand out work, detect losses, restart."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from envs.spec import DataError
from launch.cluster.config import ClusterConfig
from launch.cluster.progress import Progress
from launch.cluster.signals import Stopped
from launch.cluster.slots import (
    LOST,
    WITHOUT_GPUS,
    GroupFailedError,
    InputLostError,
    Job,
    Slot,
    kill,
    last_line,
    lost_its_input,
    raised_by_our_code,
)
from launch.cluster.waiting import Waiting
from rollout.actor import ActorFacts, RolloutActor, Timed
from rollout.fingerprint import Fingerprint
from rollout.fleet import FleetStats
from rollout.worker import RolloutWorker

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Minimum number of calls in flight per actor: one runs, one waits, so that no actor idles."""

POLL_S = 0.5

PLACING_S = 3.0
"""Time in which an actor that the cluster has room for gets its place, in seconds."""


class ActorPool:
    """Rollout actors that run jobs.

    Args:
        build: builds a worker inside an actor's process.
        config: number of actors and time limits.
        num_threads: number of threads of an actor on the CPU.
        wants_gpu: whether each actor gets a whole GPU instead of a CPU core.
        loader_threads: number of samples that an actor prepares at once; as many calls wait for it.
        is_stopping: called while waiting; Stopped is raised when it returns True.
        actor_options: Ray options that replace those derived from `wants_gpu`.

    Raises:
        RuntimeError: the cluster has no room for `min_actors`, or an actor cannot be constructed;
            the message says what was requested and what the cluster has.
    """

    def __init__(
        self,
        build: Callable[[], RolloutWorker],
        config: ClusterConfig,
        *,
        num_threads: int = 1,
        wants_gpu: bool = False,
        loader_threads: int = 0,
        is_stopping: Callable[[], bool] = lambda: False,
        actor_options: dict[str, Any] | None = None,
    ) -> None:
        self.build, self.config, self.num_threads = build, config, num_threads
        self.prepares = loader_threads > 0
        self.in_flight = max(IN_FLIGHT, 1 + loader_threads)
        self.is_stopping = is_stopping
        self.stats = FleetStats()
        # Only GPUs limit the actors of a node, even if it was started with few cores.
        resources = {"num_gpus": 1, "num_cpus": 0} if wants_gpu else {"num_cpus": 1}
        self.options = {**resources, **(actor_options or {})}
        remote: Any = ray.remote
        self.actor_class = remote(concurrency_groups={"health": 1, "loading": 1})(RolloutActor)
        kind = "GPU" if wants_gpu else "CPU"
        count = config.num_actors or int(ray.cluster_resources().get(kind, 0))
        if max(count, 1) < config.min_actors:
            raise RuntimeError(
                f"at least {config.min_actors} rollout actors are required and the cluster has "
                f"room for {count}: {self.asked_and_has()}"
            )
        self.slots = [Slot(name=f"rollout-{index}") for index in range(max(count, 1))]
        self.queue: deque[Job] = deque()
        for slot in self.slots:
            self._start(slot)
        self._await_start()

    def run(self, jobs: Sequence[Job], what: str, limit_s: float) -> None:
        """Hands out work and collects results until all of `jobs`, queued before, are done.

        Raises:
            Stopped: the run was asked to stop.
            TimeoutError: the jobs are not done within the limit.
            GroupFailedError: one job failed on several actors.
            InputLostError: the weights of one job were lost with their node.
            RuntimeError: fewer than `min_actors` are left.
        """
        with Progress(what, len(jobs)) as progress:
            self._run(jobs, what, limit_s, progress)

    def _run(self, jobs: Sequence[Job], what: str, limit_s: float, progress: Progress) -> None:
        waiting, missing_before = Waiting(limit_s), len(jobs)
        while missing := sum(job.result is None for job in jobs):
            if self.is_stopping():
                raise Stopped
            if waiting.is_over():
                raise TimeoutError(
                    f"{missing} of {len(jobs)} {what} are not done after {limit_s:.0f} s "
                    f"({self._states()}): {self.asked_and_has()}"
                )
            if missing < missing_before:
                waiting.progressed()
            missing_before = missing
            progress.update(len(jobs) - missing)
            waiting.say(lambda n=missing: f"{n} of {len(jobs)} {what} ({self._states()})")
            self._pump()

    def dispatch(self) -> None:
        """Hands out as many queued jobs as there is room for."""
        ready = [slot for slot in self.slots if slot.state == "ready"]
        names = {slot.name for slot in ready}
        for room in range(1, self.in_flight + 1):
            for slot in ready:
                if len(slot.jobs) >= room:
                    continue
                job = self._next_job(slot, names)
                if job is None:
                    continue
                if not slot.jobs:
                    slot.deadline = time.monotonic() + self.config.group_timeout_s
                if self.prepares and job.sample is not None:
                    slot.handle.prepare.remote(*job.sample)
                slot.jobs[job.call(slot.handle)] = job

    def first_facts(self) -> ActorFacts:
        """The facts of the first warm actor."""
        return next(slot.facts for slot in self.slots if slot.facts is not None)

    def shutdown(self) -> None:
        """Ends every actor."""
        for slot in self.slots:
            kill(slot.handle)

    def asked_and_has(self) -> str:
        """What an actor requests, what the cluster has and what of it is free, in words."""
        asked = {kind: self.options.get(f"num_{kind.lower()}s", 0) for kind in ("CPU", "GPU")}
        has, free = ray.cluster_resources(), ray.available_resources()
        return (
            f"each actor asks for {_counted({k: v for k, v in asked.items() if v})}, "
            f"the cluster has {_counted({k: has.get(k, 0) for k in asked})}, "
            f"free: {_counted({k: free.get(k, 0) for k in asked})}"
        )

    # -- the pump --------------------------------------------------------------------------------

    def _pump(self) -> None:
        self.dispatch()
        refs = [ref for slot in self.slots for ref in slot.jobs]
        refs += [slot.start_ref for slot in self.slots if slot.state == "starting"]
        if refs:
            ready, waiting = ray.wait(refs, num_returns=1, timeout=POLL_S)
            if ready and waiting:
                ready += ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
            for ref in ready:
                self._take(ref)
        self._note_places()
        self._expire()

    def _note_places(self) -> None:
        """Starts the time limit of every actor that the cluster has placed by now."""
        unplaced = {slot.place_ref: slot for slot in self.slots if _has_no_place(slot)}
        if unplaced:
            for ref in ray.wait(list(unplaced), num_returns=len(unplaced), timeout=0)[0]:
                unplaced[ref].is_placed = True
                unplaced[ref].deadline = time.monotonic() + self.config.start_timeout_s

    def _next_job(self, slot: Slot, names: set[str]) -> Job | None:
        for job in self.queue:
            if job.prefer in ("", slot.name) or job.prefer not in names:
                self.queue.remove(job)
                return job
        return None

    def _take(self, ref: Any) -> None:
        owners = [s for s in self.slots if ref in s.jobs or ref is s.start_ref]
        if not owners:
            return  # its actor was just lost, and its groups are queued again
        slot = owners[0]
        try:
            value: Any = ray.get(ref, timeout=self.config.group_timeout_s)
        except (RayTaskError, GetTimeoutError, *LOST) as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, DataError) and ref in slot.jobs:
                # Another actor would not help.
                raise GroupFailedError(f"{slot.jobs[ref].what}: {cause}") from None
            if lost_its_input(error) and ref in slot.jobs:
                self._give_up(slot.jobs.pop(ref), last_line(error))
                return
            self._lose(slot, str(error), ref=ref, is_error=raised_by_our_code(error))
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
            self.queue.appendleft(job)
            return
        slot.failures = 0
        slot.busy_s += timed.seconds - timed.waited_s
        slot.waited_s += timed.waited_s
        slot.num_done += 1
        job.result = timed

    def _give_up(self, job: Job, reason: str) -> None:
        """Ends a call that no actor can run, because what it needs is gone."""
        if not job.is_dropped:
            raise InputLostError(f"{job.what}: an input was lost with its node ({reason})")

    def _expire(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.state == "ready" and slot.jobs and now > slot.deadline:
                limit = self.config.group_timeout_s
                self._lose(slot, f"no answer for {limit:.0f} s", is_error=True)
            elif slot.state == "starting" and slot.is_placed and now > slot.deadline:
                limit = self.config.start_timeout_s
                self._lose(slot, f"not warm after {limit:.0f} s; {self.asked_and_has()}")

    # -- lifecycle -------------------------------------------------------------------------------

    def _start(self, slot: Slot) -> None:
        slot.incarnation += 1
        slot.state, slot.facts, slot.is_placed = "starting", None, False
        hidden = {} if self.options.get("num_gpus") else WITHOUT_GPUS
        slot.handle = self.actor_class.options(
            **self.options,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self.num_threads), **hidden}},
        ).remote(self.build, slot.name, slot.incarnation, self.num_threads)
        slot.place_ref = slot.handle.status.remote()
        slot.start_ref = slot.handle.start.remote()

    def _admit(self, slot: Slot, facts: ActorFacts) -> None:
        expected = self._fingerprint()
        slot.start_ref = None
        if expected is not None and (differences := expected.differences(facts.fingerprint)):
            self._bury(slot, f"it differs from the rest of the fleet ({differences})")
            return
        slot.state, slot.facts = "ready", facts
        log.info(
            "%s is warm on %s: %s, %d threads, clock %s, runtime %s with %.0f MiB of buffers and "
            "graphs, the full configuration takes %.1f ms%s",
            slot.name,
            facts.facts.device,
            facts.facts.dtype,
            facts.facts.num_threads,
            facts.facts.clock,
            facts.facts.runtime,
            facts.runtime_bytes / 2**20,
            facts.reference_latency_ms,
            f" (restarted {facts.incarnation} times)" if facts.incarnation else "",
        )
        self._name_deviating()

    def _fingerprint(self) -> Fingerprint | None:
        return next((s.facts.fingerprint for s in self.slots if s.facts is not None), None)

    def _name_deviating(self) -> None:
        """Warns about actors on slow devices, which would corrupt the rewards."""
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

    def _lose(self, slot: Slot, reason: str, *, ref: Any = None, is_error: bool = False) -> None:
        """Queues a lost actor's groups again and restarts the actor.

        After an error the device may be unusable for that process, so the process is killed too.
        The failure is counted for the call that raised or was running, not for waiting ones.
        """
        summary = last_line(reason)
        kill(slot.handle)
        running = slot.jobs.get(ref) or next(iter(slot.jobs.values()), None)
        wanted = [job for job in slot.jobs.values() if not job.is_dropped]
        self.queue.extendleft(wanted)
        self.stats.reruns += len(wanted)
        slot.jobs = {}
        if running is not None:
            running.blame(slot.name, summary, is_error=is_error)
        slot.failures += 1
        if is_error and slot.state == "starting" and slot.incarnation == 0:
            self._bury(slot, f"it could not be started: {summary}")
        elif slot.failures > self.config.max_restarts:
            self._bury(slot, f"it was lost {slot.failures} times in a row: {summary}")
        else:
            log.warning("%s is lost (%s): its groups run again", slot.name, summary)
            self.stats.restarts += 1
            self._start(slot)

    def _bury(self, slot: Slot, reason: str) -> None:
        """Continues without an actor; raises RuntimeError when too few are left."""
        kill(slot.handle)
        slot.state, slot.start_ref = "dead", None
        alive = sum(s.state != "dead" for s in self.slots)
        if alive < self.config.min_actors:
            self.shutdown()
            raise RuntimeError(
                f"{slot.name} is given up, {reason}; {alive} rollout actors are left and at least "
                f"{self.config.min_actors} are required; {self.asked_and_has()}"
            )
        log.error("%s is given up, %s; %d actors continue", slot.name, reason, alive)

    def _await_start(self) -> None:
        """Waits for all actors; after the time limit `min_actors` warm ones are enough."""
        waiting, is_short = Waiting(self.config.start_timeout_s), False
        placing = Waiting(PLACING_S)
        while any(slot.state == "starting" for slot in self.slots):
            if self.is_stopping():
                self.shutdown()
                raise Stopped
            if waiting.is_over():
                break
            if placing.is_over() and not is_short and self._is_short_of_room():
                is_short = True
                waiting.say(self._who_starts, at_once=True)
            waiting.say(self._who_starts)
            self._pump()
        ready = sum(slot.state == "ready" for slot in self.slots)
        if ready < self.config.min_actors:
            self.shutdown()
            raise RuntimeError(
                f"{ready} of {len(self.slots)} rollout actors were warm after "
                f"{self.config.start_timeout_s:.0f} s and at least {self.config.min_actors} are "
                f"required: {self.asked_and_has()}"
            )
        if ready < len(self.slots):
            log.warning("%d of %d rollout actors are warm and start", ready, len(self.slots))

    def _is_short_of_room(self) -> bool:
        """Whether an actor has no place and the cluster lacks what it asks for."""
        free = ray.available_resources()
        asked = {"CPU": self.options.get("num_cpus", 0), "GPU": self.options.get("num_gpus", 0)}
        has_room = all(free.get(kind, 0) >= amount for kind, amount in asked.items())
        return not has_room and any(map(_has_no_place, self.slots))

    def _who_starts(self) -> str:
        """Which actors are not warm yet, and what keeps each of them."""
        starting = [slot for slot in self.slots if slot.state == "starting"]
        unplaced = [slot.name for slot in starting if not slot.is_placed]
        loading = [slot.name for slot in starting if slot.is_placed]
        parts = [f"{', '.join(loading)} to load the model and warm up"] if loading else []
        if unplaced:
            parts.append(
                f"{', '.join(unplaced)} to get a place and start its process: "
                f"{self.asked_and_has()} (including what is starting here)"
            )
        return f"{len(starting)} of {len(self.slots)} rollout actors: " + "; ".join(parts)

    def _states(self) -> str:
        return ", ".join(f"{s.name} {s.state} with {len(s.jobs)} calls" for s in self.slots[:8])


def _has_no_place(slot: Slot) -> bool:
    return slot.state == "starting" and not slot.is_placed


def _counted(amounts: Mapping[str, float]) -> str:
    """Amounts of resources in words, such as `2 CPUs and no GPU`."""
    parts = [
        f"{f'{amount:g}' if amount else 'no'} {kind}{'s' if amount > 1 else ''}"
        for kind, amount in amounts.items()
    ]
    return " and ".join(parts) or "nothing"

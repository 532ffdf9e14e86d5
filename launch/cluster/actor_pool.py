"""Work for the rollout actors: it is handed out, collected, and run again when an actor is lost."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from envs.spec import DataError
from launch.cluster.config import ClusterConfig
from launch.cluster.membership import FINAL, PLACING_S, Membership
from launch.cluster.progress import Progress
from launch.cluster.signals import Stopped
from launch.cluster.slots import (
    LOST,
    GroupFailedError,
    InputLostError,
    Job,
    Slot,
    last_line,
    lost_its_input,
    raised_by_our_code,
)
from launch.cluster.waiting import Waiting
from rollout.actor import ActorFacts, Timed
from rollout.fleet import FleetStats
from rollout.worker import RolloutWorker

log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Minimum number of calls in flight per actor: one runs, one waits, so that no actor idles."""

POLL_S = 0.5

PATIENCE = 5.0
"""A call may take so many times what its episodes would take in the full configuration."""


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
        downloads: the model that actors may have to download at their start.

    Raises:
        RuntimeError: the cluster has no room for `min_actors`, or an actor cannot be constructed;
            the message says what was requested and what the cluster has.
    """

    membership_class = Membership

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
        downloads: str = "",
    ) -> None:
        self.config = config
        self.prepares = loader_threads > 0
        self.in_flight = max(IN_FLIGHT, 1 + loader_threads)
        self.is_stopping = is_stopping
        self.stats = FleetStats()
        self.members = self.membership_class(
            build,
            config,
            num_threads=num_threads,
            wants_gpu=wants_gpu,
            actor_options=actor_options or {},
            downloads=downloads,
            stats=self.stats,
        )
        self.queue: deque[Job] = deque()
        self._await_start()

    @property
    def slots(self) -> list[Slot]:
        """The places of the actors, which follow the cluster."""
        return self.members.slots

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
        limit_s = max(limit_s, self._limit_of_all(jobs))
        waiting, missing_before = Waiting(limit_s), len(jobs)
        while missing := sum(job.result is None for job in jobs):
            if self.is_stopping():
                raise Stopped
            if waiting.is_over():
                raise TimeoutError(
                    f"{missing} of {len(jobs)} {what} are not done after {limit_s:.0f} s "
                    f"({self._states()}): {self.members.asked_and_has()}"
                )
            if missing < missing_before:
                waiting.progressed()
            missing_before = missing
            progress.update(len(jobs) - missing)
            waiting.say(lambda n=missing: f"{n} of {len(jobs)} {what} ({self._states()})")
            self._pump()

    def dispatch(self) -> None:
        """Hands out as many queued jobs as there is room for."""
        ready = self.members.ready
        names = {slot.name for slot in ready}
        for room in range(1, self.in_flight + 1):
            for slot in ready:
                if len(slot.jobs) >= room:
                    continue
                job = self._next_job(slot, names)
                if job is None:
                    continue
                is_idle = not slot.jobs
                if self.prepares and job.sample is not None:
                    slot.handle.prepare.remote(*job.sample)
                slot.jobs[job.call(slot.handle)] = job
                if is_idle:
                    slot.deadline = time.monotonic() + self._limit_of(slot)

    def first_facts(self) -> ActorFacts:
        """The facts of the first warm actor of the run's model, even if it is gone by now."""
        assert self.members.facts is not None, "a pool begins with a warm actor"
        return self.members.facts

    def shutdown(self) -> None:
        """Ends every actor."""
        self.members.shutdown()

    # -- the pump --------------------------------------------------------------------------------

    def _pump(self) -> None:
        self.members.follow()
        self.dispatch()
        refs = [ref for slot in self.slots for ref in slot.jobs]
        refs += [slot.start_ref for slot in self.slots if slot.state == "starting"]
        if refs:
            ready, waiting = ray.wait(refs, num_returns=1, timeout=POLL_S)
            if ready and waiting:
                ready += ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
            for ref in ready:
                self._take(ref)
        else:
            time.sleep(POLL_S)
        self._expire()

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
            is_error = raised_by_our_code(error)
            self._lose(slot, str(error), ref, is_error=is_error, is_final=isinstance(cause, FINAL))
            return
        if ref is slot.start_ref:
            self.members.admit(slot, value)
        else:
            self._complete(slot, ref, value)

    def _complete(self, slot: Slot, ref: Any, timed: Timed) -> None:
        job = slot.jobs.pop(ref)
        slot.deadline = time.monotonic() + self._limit_of(slot)
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
        for slot in list(self.slots):
            if slot.state == "ready" and slot.jobs and now > slot.deadline:
                self._lose(slot, f"no answer for {self._limit_of(slot):.0f} s", is_error=True)
            elif slot.state == "starting" and slot.is_placed and now > slot.deadline:
                limit, has = self.config.start_timeout_s, self.members.asked_and_has()
                self._lose(slot, f"not warm after {limit:.0f} s; {has}")

    def _lose(
        self,
        slot: Slot,
        reason: str,
        ref: Any = None,
        *,
        is_error: bool = False,
        is_final: bool = False,
    ) -> None:
        """Queues a lost actor's jobs again and replaces the actor.

        The failure is counted for the call that raised or was running, not for waiting ones.
        """
        running = slot.jobs.get(ref) or next(iter(slot.jobs.values()), None)
        lost = self.members.lose(slot, reason, is_error=is_error, is_final=is_final)
        wanted = [job for job in lost if not job.is_dropped]
        self.queue.extendleft(wanted)
        self.stats.reruns += len(wanted)
        if running is not None:
            running.blame(slot.name, last_line(reason), is_error=is_error)

    # -- limits and the start --------------------------------------------------------------------

    def _limit_of(self, slot: Slot) -> float:
        """Time limit of the call that a slot runs: it grows with a slow device and large groups."""
        assert slot.facts is not None
        full_s = slot.facts.reference_latency_ms / 1e3
        num_episodes = max((job.num_episodes for job in slot.jobs.values()), default=1)
        return max(self.config.group_timeout_s, PATIENCE * num_episodes * full_s)

    def _limit_of_all(self, jobs: Sequence[Job]) -> float:
        """The same for jobs that all warm actors share; 0 while none is warm."""
        known = [slot.facts.reference_latency_ms for slot in self.slots if slot.facts is not None]
        if not known:
            return 0.0
        return PATIENCE * sum(job.num_episodes for job in jobs) * max(known) / 1e3 / len(known)

    def _await_start(self) -> None:
        """Waits until a run can begin; actors that the cluster has no room for join later."""
        waiting, placing = Waiting(self.config.start_timeout_s), Waiting(PLACING_S)
        is_short, signs_of_life = False, 0
        while not self.members.is_settled(placing) and not waiting.is_over():
            if self.is_stopping():
                self.shutdown()
                raise Stopped
            if placing.is_over() and not is_short and self.members.is_short_of_room():
                is_short = True
                waiting.say(self.members.who_starts, at_once=True)
            if self.members.num_signs_of_life > signs_of_life:  # a place, or more of the model
                signs_of_life = self.members.num_signs_of_life
                waiting.renew()
            waiting.say(self.members.who_starts)
            self._pump()
        self.members.agree()
        ready = len(self.members.ready)
        if ready < self.config.min_actors:
            self.shutdown()
            raise RuntimeError(
                f"{ready} of {len(self.slots)} rollout actors were warm after "
                f"{self.config.start_timeout_s:.0f} s and at least {self.config.min_actors} are "
                f"required: {self.members.asked_and_has()}"
            )
        if ready < len(self.slots):
            log.warning("%d of %d rollout actors are warm and start", ready, len(self.slots))

    def _states(self) -> str:
        return ", ".join(f"{s.name} {s.state} with {len(s.jobs)} calls" for s in self.slots[:8])

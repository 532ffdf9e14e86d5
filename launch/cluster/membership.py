"""Which rollout actors there are: they start, join, agree, are lost, and come back.

The fleet follows the cluster. Every GPU that joins gets an actor, which works as soon as it is
warm; an actor whose GPU is gone waits for another one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from launch.cluster.config import ClusterConfig
from launch.cluster.slots import WITHOUT_GPUS, Job, Slot, kill, last_line
from launch.cluster.waiting import Waiting
from rollout.actor import ActorFacts, RolloutActor
from rollout.fingerprint import Fingerprint
from rollout.fleet import FleetStats
from rollout.worker import RolloutWorker

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
"""How often the fleet looks at what the cluster has."""

PLACING_S = 3.0
"""Time in which an actor that the cluster has room for gets its place, in seconds."""

LONGEST_PAUSE_S = 60.0
"""Longest pause before an actor that raised at its start is started again."""

AGAIN_AFTER_S = 300.0
"""Time after which an actor that was given up is started once more, in seconds."""

FINAL = (ValueError, TypeError, LookupError, AttributeError, ImportError)
"""Exceptions at an actor's start that another attempt would raise again."""


class Membership:
    """The slots of a fleet and their actors.

    Args:
        build: builds a worker inside an actor's process.
        config: number of actors and time limits.
        num_threads: number of threads of an actor on the CPU.
        wants_gpu: whether each actor gets a whole GPU instead of a CPU core.
        actor_options: Ray options that replace those derived from `wants_gpu`.
        downloads: the model that actors may have to download at their start.
        stats: counts restarts.
    """

    def __init__(
        self,
        build: Callable[[], RolloutWorker],
        config: ClusterConfig,
        *,
        num_threads: int,
        wants_gpu: bool,
        actor_options: Mapping[str, Any],
        downloads: str,
        stats: FleetStats,
    ) -> None:
        self.build, self.config, self.num_threads = build, config, num_threads
        self.stats, self.downloads = stats, downloads
        # Only GPUs limit the actors of a node, even if it was started with few cores.
        resources = {"num_gpus": 1, "num_cpus": 0} if wants_gpu else {"num_cpus": 1}
        self.options = {**resources, **actor_options}
        self.kind = "GPU" if wants_gpu else "CPU"
        remote: Any = ray.remote
        self.actor_class = remote(concurrency_groups={"health": 1, "loading": 1})(RolloutActor)
        self.slots: list[Slot] = []
        self.num_signs_of_life = 0
        self.facts: ActorFacts | None = None
        self.fingerprint: Fingerprint | None = None
        self._num_named = 0
        self._look_at = 0.0
        self.follow()

    # -- who is there ----------------------------------------------------------------------------

    @property
    def ready(self) -> list[Slot]:
        """Slots with a warm actor."""
        return [slot for slot in self.slots if slot.state == "ready"]

    @property
    def num_placed(self) -> int:
        """Number of actors that have a place on the cluster: warm ones, and those that load."""
        return sum(slot.is_placed and slot.state in ("starting", "ready") for slot in self.slots)

    def follow(self) -> None:
        """Looks at the cluster every two seconds, and adapts the number of slots to it."""
        now = time.monotonic()
        self._note_places()
        for slot in self.slots:
            if slot.state in ("paused", "given up") and now >= slot.again_at:
                self.start(slot)
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        wanted = self.config.num_actors or int(ray.cluster_resources().get(self.kind, 0))
        while len(self.slots) < wanted:
            slot = Slot(name=f"rollout-{self._num_named}")
            self._num_named += 1
            self.slots.append(slot)
            self.start(slot)
        surplus = len(self.slots) - wanted
        for slot in [slot for slot in self.slots if _waits_for_a_place(slot)][:surplus]:
            kill(slot.handle)
            self.slots.remove(slot)

    def _note_places(self) -> None:
        """Starts the time limit of every actor that the cluster has placed by now.

        It begins anew as long as the model is being downloaded.
        """
        asked = {slot.place_ref: slot for slot in self.slots if slot.state == "starting"}
        if not asked:
            return
        for ref in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0]:
            slot, status = asked[ref], _status(ref)
            slot.place_ref = slot.handle.status.remote()
            if status is not None and status["downloaded"] > slot.downloaded:
                slot.is_placed, slot.downloaded = True, status["downloaded"]
                slot.deadline = time.monotonic() + self.config.start_timeout_s
                self.num_signs_of_life += 1

    # -- one actor's life ------------------------------------------------------------------------

    def start(self, slot: Slot) -> None:
        """Starts a slot's next actor."""
        slot.incarnation += 1
        slot.state, slot.facts, slot.is_placed = "starting", None, False
        hidden = {} if self.options.get("num_gpus") else WITHOUT_GPUS
        slot.handle = self.actor_class.options(
            **self.options,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self.num_threads), **hidden}},
        ).remote(self.build, slot.name, slot.incarnation, self.num_threads, self.downloads)
        slot.place_ref, slot.downloaded = slot.handle.status.remote(), -1
        slot.start_ref = slot.handle.start.remote()

    def admit(self, slot: Slot, facts: ActorFacts) -> None:
        """Lets a warm actor work, unless it differs from what the fleet has agreed on."""
        slot.start_ref = None
        agreed = self.fingerprint or facts.fingerprint
        if differences := agreed.differences(facts.fingerprint):
            self._exclude(slot, differences)
            return
        slot.state, slot.facts, slot.is_placed = "ready", facts, True
        self.facts = self.facts or facts
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

    def agree(self) -> None:
        """Fixes the model, tasks and device of the run: those of most actors that are warm.

        Actors that differ are left out, now and later.
        """
        known = [slot.facts for slot in self.slots if slot.facts is not None]
        if not known:
            return
        found = [facts.fingerprint for facts in known]
        votes = [sum(not one.differences(other) for other in found) for one in found]
        self.fingerprint = found[int(np.argmax(votes))]
        self.facts = known[int(np.argmax(votes))]
        for slot in self.ready:
            assert slot.facts is not None
            if differences := self.fingerprint.differences(slot.facts.fingerprint):
                self._exclude(slot, differences)

    def lose(self, slot: Slot, reason: str, *, is_error: bool, is_final: bool = False) -> list[Job]:
        """Replaces a lost actor; returns the jobs that it had.

        After an error the device may be unusable for that process, so the process is killed too.
        An actor that raises while it starts is started again after a pause, which grows.
        """
        kill(slot.handle)
        jobs, slot.jobs = list(slot.jobs.values()), {}
        slot.failures += 1
        summary = last_line(reason)
        if is_final and slot.state == "starting":
            self.give_up(slot, f"it could not be started: {summary}", again_after_s=math.inf)
        elif slot.failures > self.config.max_restarts:
            self.give_up(slot, f"it was lost {slot.failures} times in a row: {summary}")
        elif is_error and slot.state == "starting":
            pause_s = min(2.0 ** (slot.failures - 1), LONGEST_PAUSE_S)
            slot.state, slot.start_ref = "paused", None
            slot.again_at = time.monotonic() + pause_s
            self.stats.restarts += 1
            log.warning(
                "%s could not be started (%s): once more in %.0f s", slot.name, summary, pause_s
            )
        else:
            log.warning("%s is lost (%s): its groups run again", slot.name, summary)
            self.stats.restarts += 1
            self.start(slot)
        return jobs

    def give_up(self, slot: Slot, reason: str, again_after_s: float = AGAIN_AFTER_S) -> None:
        """Goes on without an actor for a while; raises RuntimeError when too few are left."""
        kill(slot.handle)
        slot.state, slot.facts, slot.start_ref = "given up", None, None
        slot.failures, slot.again_at = 0, time.monotonic() + again_after_s
        left = sum(s.state != "given up" for s in self.slots)
        if left < self.config.min_actors:
            self.shutdown()
            raise RuntimeError(
                f"{slot.name} is given up, {reason}; {left} rollout actors are left and at least "
                f"{self.config.min_actors} are required; {self.asked_and_has()}"
            )
        log.error("%s is given up, %s; %d actors continue", slot.name, reason, left)

    def _exclude(self, slot: Slot, differences: str) -> None:
        self.give_up(
            slot, f"it differs from the rest of the fleet ({differences})", again_after_s=math.inf
        )

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

    def shutdown(self) -> None:
        """Ends every actor."""
        for slot in self.slots:
            kill(slot.handle)

    # -- what the start waits for ----------------------------------------------------------------

    def is_settled(self, placing: Waiting) -> bool:
        """Whether a run can begin: enough actors are warm, and no other one is about to be.

        Args:
            placing: the time in which actors get their places.
        """
        starting = [slot for slot in self.slots if slot.state == "starting"]
        is_loading = any(slot.is_placed for slot in starting)
        is_placing = any(not slot.is_placed for slot in starting) and not placing.is_over()
        return len(self.ready) >= self.config.min_actors and not is_loading and not is_placing

    def is_short_of_room(self) -> bool:
        """Whether an actor has no place and the cluster lacks what it asks for."""
        free = ray.available_resources()
        asked = {"CPU": self.options.get("num_cpus", 0), "GPU": self.options.get("num_gpus", 0)}
        has_room = all(free.get(kind, 0) >= amount for kind, amount in asked.items())
        return not has_room and any(map(_waits_for_a_place, self.slots))

    def who_starts(self) -> str:
        """Which actors are not warm yet, and what keeps each of them."""
        paused = [slot.name for slot in self.slots if slot.state == "paused"]
        unplaced = [slot.name for slot in self.slots if _waits_for_a_place(slot)]
        loading = [slot for slot in self.slots if slot.state == "starting" and slot.is_placed]
        parts = []
        if loading:
            names, most = (
                ", ".join(slot.name for slot in loading),
                max(s.downloaded for s in loading),
            )
            has = f" ({most / 1e9:.1f} GB of it in the cache)" if most else ""
            parts.append(f"{names} to load the model{has} and warm up")
        if paused:
            parts.append(f"{', '.join(paused)} to be started again after an error")
        if unplaced:
            parts.append(
                f"{', '.join(unplaced)} to get a place and start its process: "
                f"{self.asked_and_has()} (including what is starting here)"
            )
        missing = self.config.min_actors - len(self.slots)
        if missing > 0:
            parts.append(f"{missing} more {self.kind}s to join: {self.asked_and_has()}")
        number = len(paused) + len(unplaced) + len(loading)
        return f"{number} of {len(self.slots)} rollout actors: " + "; ".join(parts)

    def asked_and_has(self) -> str:
        """What an actor requests, what the cluster has and what of it is free, in words."""
        asked = {kind: self.options.get(f"num_{kind.lower()}s", 0) for kind in ("CPU", "GPU")}
        has, free = ray.cluster_resources(), ray.available_resources()
        return (
            f"each actor asks for {_counted({k: v for k, v in asked.items() if v})}, "
            f"the cluster has {_counted({k: has.get(k, 0) for k in asked})}, "
            f"free: {_counted({k: free.get(k, 0) for k in asked})}"
        )


def _status(ref: Any) -> dict[str, Any] | None:
    """An actor's status; None if the actor was lost, which its start reports as well."""
    try:
        return ray.get(ref, timeout=10)
    except (RayError, GetTimeoutError):
        return None


def _waits_for_a_place(slot: Slot) -> bool:
    return slot.state == "starting" and not slot.is_placed


def _counted(amounts: Mapping[str, float]) -> str:
    """Amounts of resources in words, such as `2 CPUs and no GPU`."""
    parts = [
        f"{f'{amount:g}' if amount else 'no'} {kind}{'s' if amount > 1 else ''}"
        for kind, amount in amounts.items()
    ]
    return " and ".join(parts) or "nothing"

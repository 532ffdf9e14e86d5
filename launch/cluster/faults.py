"""Faults on purpose: what a cluster does to a long run, at times that a schedule or a seed decides.

    python launch/joint_grpo.py --faults.every-s 60 --faults.kinds actor learner node
    python launch/joint_grpo.py --faults.schedule actor@30 learner@60 driver@90

What is hit:

    actor     SIGKILL to a rollout actor's process
    learner   the learner's process ends
    node      SIGKILL to the Ray node of another machine than the driver's, with all that runs there
    driver    SIGKILL to this process; the same command resumes the run, and the times begin anew
    store     calls to the object store fail for ten seconds
"""

from __future__ import annotations

import heapq
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launch.cluster.config import FAULT_KINDS, FaultConfig, FaultKind
from launch.cluster.slots import Slot, kill

log = logging.getLogger(__name__)

OUTAGE_S = 10.0
"""Duration of an outage of the object store."""

KILL_LIMIT_S = 30.0
"""Time limit for a kill on another node."""


class FaultInjector:
    """A thread that injects faults while a block runs.

    Args:
        config: which faults, and when.
        slots: gives the rollout actors' places.
        learner: gives the handle of the learner's present actor.
        begin_outage: makes all calls to the object store fail for so many seconds.

    Attributes:
        injected: the kinds of the faults so far.
    """

    def __init__(
        self,
        config: FaultConfig,
        slots: Callable[[], list[Slot]],
        learner: Callable[[], object],
        begin_outage: Callable[[float], None],
    ) -> None:
        self.config, self._slots, self._learner = config, slots, learner
        self._outage = begin_outage
        self.injected: list[FaultKind] = []
        self._rng = np.random.default_rng(config.seed)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="faults", daemon=True)
        self._inject: dict[FaultKind, Callable[[], str]] = {
            "actor": self._kill_an_actor,
            "learner": self._end_the_learner,
            "node": self._kill_a_node,
            "driver": self._kill_this_process,
            "store": self._begin_an_outage,
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(2 * KILL_LIMIT_S)

    def times(self) -> Iterator[tuple[float, FaultKind]]:
        """Seconds since the start, and kinds, of all faults in order."""
        return heapq.merge(self.config.planned(), self._random_times())

    def _random_times(self) -> Iterator[tuple[float, FaultKind]]:
        at_s = 0.0
        while self.config.every_s:
            at_s += float(self._rng.exponential(self.config.every_s))
            yield at_s, FAULT_KINDS[FAULT_KINDS.index(self._rng.choice(self.config.kinds))]

    def _work(self) -> None:
        started = time.monotonic()
        for at_s, kind in self.times():
            if self._is_over.wait(max(0.0, started + at_s - time.monotonic())):
                return
            try:
                done = self._inject[kind]()
            except (RayError, OSError) as error:
                done = f"nothing, because of {type(error).__name__}"
            self.injected.append(kind)
            log.warning("fault on purpose, %s: %s", kind, done or "there is none to hit")

    def _kill_an_actor(self) -> str:
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        warm = [slot for slot in self._slots() if slot.facts and slot.facts.node in alive]
        if not warm:
            return ""
        slot = warm[int(self._rng.integers(len(warm)))]
        assert slot.facts is not None
        _on_node(slot.facts.node, slot.facts.pid)
        return f"{slot.name}, process {slot.facts.pid}"

    def _end_the_learner(self) -> str:
        kill(self._learner())
        return "its process"

    def _kill_a_node(self) -> str:
        own = ray.get_runtime_context().get_node_id()
        others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
        if not others:
            return ""
        node = sorted(others)[int(self._rng.integers(len(others)))]
        _on_node(node, 0)
        return node[:12]

    def _kill_this_process(self) -> str:
        log.warning("fault on purpose, driver: this process; the same command resumes the run")
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def _begin_an_outage(self) -> str:
        self._outage(OUTAGE_S)
        return f"no call succeeds for {OUTAGE_S:.0f} s"


def _kill_here(pid: int) -> None:
    """In a Ray worker: kills a process of its node, or with 0 the node itself, its parent."""
    os.kill(pid or os.getppid(), signal.SIGKILL)


def _on_node(node: str, pid: int) -> None:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(_kill_here).options(scheduling_strategy=place)
    try:
        ray.get(task.remote(pid), timeout=KILL_LIMIT_S)
    except RayError:
        if pid:
            raise  # a killed node cannot say that it is gone

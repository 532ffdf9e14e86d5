"""The Ray actor around `RolloutWorker`: threads, weights by reference and health checks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from envs.calibration import Calibration
from envs.spec import Knobs
from policy.config import PolicySetup
from policy.weights import PolicyWeights
from rollout.fingerprint import Fingerprint
from rollout.latency.clock import DeviceFacts
from rollout.molmoe.config import downloaded_bytes
from rollout.requests import (
    GradientRequest,
    GreedyRequest,
    GroupRequest,
    PrefixRequest,
    ScoreRequest,
)
from rollout.worker import RolloutWorker

FETCH_TIMEOUT_S = 60.0
"""Time limit for fetching new weights from the object store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """Weights of one version by reference; `refs` holds one ObjectRef of a dict of arrays."""

    version: int
    sha256: str
    refs: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorFacts:
    """An actor's report when it is warm.

    Attributes:
        name: name of the actor in the run.
        incarnation: number of earlier actors of this name.
        node: id of its node.
        pid: id of its process.
        facts: circumstances of its latencies.
        fingerprint: its model, tasks and device.
        reference_latency_ms: latency of the full configuration on one fixed sample.
        census: samples of each data set by split.
        runtime_bytes: memory on the device for buffers and graphs that decoding takes once.
    """

    name: str
    incarnation: int
    node: str
    pid: int
    facts: DeviceFacts
    fingerprint: Fingerprint
    reference_latency_ms: float
    census: Mapping[str, Mapping[str, int]]
    runtime_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A result, the actor that made it, and how long that took.

    Attributes:
        value: the result.
        seconds: duration of the call.
        waited_s: the part of it that the actor waited for its sample.
        actor: name of the actor.
        incarnation: number of earlier actors of this name.
    """

    value: Any
    seconds: float
    waited_s: float
    actor: str
    incarnation: int


class RolloutActor:
    """One worker in its own process.

    The constructor does next to nothing, so that `status` shows whether the cluster has a place.

    Args:
        build: builds the worker in `start`; raises if the model cannot be loaded.
        name: name of the actor in the run.
        incarnation: number of earlier actors of this name.
        num_threads: number of threads of a worker on the CPU.
        downloads: the model that `build` may have to download first.
    """

    def __init__(
        self,
        build: Callable[[], RolloutWorker],
        name: str,
        incarnation: int,
        num_threads: int,
        downloads: str = "",
    ) -> None:
        self.num_threads = num_threads
        self._build, self._name, self._incarnation = build, name, incarnation
        self._calls, self._downloads = 0, downloads

    @ray.method(concurrency_group="loading")
    def prepare(self, split: str, index: int) -> None:
        """See `SampleLoader.prepare`; replies at once."""
        self.worker.loader.prepare(split, index)

    @ray.method(concurrency_group="health")
    def status(self) -> dict[str, Any]:
        """Replies as soon as the actor has a place, even while it loads or a group runs."""
        return {
            "name": self._name,
            "pid": os.getpid(),
            "calls": self._calls,
            "downloaded": downloaded_bytes(self._downloads) if self._downloads else 0,
        }

    def start(self) -> ActorFacts:
        """Builds the worker, warms up and measures the reference latency."""
        # OpenMP's limit is per calling thread, and methods run on another one than the constructor.
        torch.set_num_threads(self.num_threads)
        self.worker = self._build()
        self.worker.name, self.worker.incarnation = self._name, self._incarnation
        self.worker.warm_up()
        return ActorFacts(
            name=self.worker.name,
            incarnation=self.worker.incarnation,
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            facts=self.worker.facts(),
            fingerprint=self.worker.fingerprint(),
            reference_latency_ms=self.worker.reference_latency_ms(),
            census=self.worker.census(),
            runtime_bytes=self.worker.executor.runtime.num_bytes,
        )

    def extreme_latencies(self, split: str, index: int) -> Timed:
        """See `RolloutWorker.extreme_latencies`."""
        return self._timed(lambda: self.worker.extreme_latencies(split, index))

    def cheapest_ms(
        self, split: str, index: int, repeats: int, calibration: Calibration | None
    ) -> Timed:
        """See `RolloutWorker.cheapest_ms`."""
        return self._timed(lambda: self.worker.cheapest_ms(split, index, repeats, calibration))

    def profile(
        self,
        configurations: Sequence[Knobs],
        split: str,
        index: int,
        calibration: Calibration | None,
    ) -> Timed:
        """See `RolloutWorker.profile`."""
        return self._timed(lambda: self.worker.profile(configurations, split, index, calibration))

    def prefixes(self, request: PrefixRequest) -> Timed:
        """See `RolloutWorker.prefixes`."""
        return self._timed(lambda: self.worker.prefixes(request))

    def rollout(
        self, request: GroupRequest, setup: PolicySetup, weights: PublishedWeights
    ) -> Timed:
        """Runs one group with these weights, which are fetched only if they changed."""
        self._install(setup, weights)
        return self._timed(lambda: self.worker.rollout(request))

    def greedy(
        self, request: GreedyRequest, setup: PolicySetup, weights: PublishedWeights
    ) -> Timed:
        """Runs one greedy episode with these weights."""
        self._install(setup, weights)
        return self._timed(lambda: self.worker.greedy(request))

    def budget_gradient(self, request: GradientRequest) -> Timed:
        """See `RolloutWorker.budget_gradient`."""
        return self._timed(lambda: self.worker.budget_gradient(request))

    def score(self, request: ScoreRequest) -> Timed:
        """See `RolloutWorker.score`."""
        return self._timed(lambda: self.worker.score(request))

    def _install(self, setup: PolicySetup, weights: PublishedWeights) -> None:
        if not self.worker.has(setup, weights.version, weights.sha256):
            arrays: Any = ray.get(weights.refs[0], timeout=FETCH_TIMEOUT_S)
            policy = PolicyWeights(version=weights.version, sha256=weights.sha256, arrays=arrays)
            self.worker.install(setup, policy)

    def _timed(self, work: Callable[[], Any]) -> Timed:
        self._calls += 1
        started, waited_s = time.perf_counter(), self.worker.loader.waited_s
        value = work()
        return Timed(
            value=value,
            seconds=time.perf_counter() - started,
            waited_s=self.worker.loader.waited_s - waited_s,
            actor=self.worker.name,
            incarnation=self.worker.incarnation,
        )

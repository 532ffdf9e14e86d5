"""Whoever runs groups: one interface, in process here and over Ray actors in `launch/cluster.py`.

Shapes: G members, D d_model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np

from policy.weights import PolicyWeights
from rollout.batch import GroupRollout
from rollout.worker import (
    FailedGroup,
    GradientRequest,
    GroupRequest,
    PolicySetup,
    Prefixes,
    PrefixRequest,
    RolloutWorker,
)

log = logging.getLogger(__name__)

MAX_REPLACEMENTS = 20
"""Unusable samples in a row after which the data, not a sample, is at fault."""


@dataclass(slots=True, kw_only=True)
class FleetStats:
    """Counts since the start of the run, and shares of the last batch.

    Attributes:
        failed_samples: groups replaced because their sample was unusable.
        reruns: groups run again because their actor was lost.
        restarts: actors started again.
        rejected: results that did not prove which weights, actor and incarnation made them.
        busy_share: by actor, share of the last collection that it was running groups.
        slowest: actor with the longest mean time a group in the last collection.
    """

    failed_samples: int = 0
    reruns: int = 0
    restarts: int = 0
    rejected: int = 0
    busy_share: dict[str, float] = field(default_factory=dict)
    slowest: str = ""


Weights = TypeVar("Weights", contravariant=True)
"""`PolicyWeights` in process, a reference to them over Ray."""


class Fleet(Protocol[Weights]):
    """Runs groups and returns whole ones, in the order of their ids."""

    @property
    def stats(self) -> FleetStats:
        """Counts since the start of the run, and shares of the last batch."""
        ...

    def submit(self, requests: Sequence[GroupRequest], setup: PolicySetup, weights: Weights) -> int:
        """Queues a batch of groups under given weights; returns its ticket."""
        ...

    def collect(self, ticket: int) -> list[GroupRollout]:
        """Waits, within the fleet's limits, for all groups of a batch."""
        ...

    def budget_gradients(
        self, groups: Sequence[GroupRollout], gradients: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """dL/d(latency token) [G, D] of each group -> dL/d(budget token) [D]."""
        ...


def replacement(request: GroupRequest, failure: FailedGroup, attempts: int) -> GroupRequest:
    """The request for the next sample instead of an unusable one, which is logged.

    Raises:
        ValueError: after MAX_REPLACEMENTS in a row; names the last reason.
    """
    if attempts >= MAX_REPLACEMENTS:
        raise ValueError(
            f"{attempts} samples in a row were unusable, the last one: {failure.reason}; "
            "check the data set"
        )
    log.warning("group %d left its sample out: %s", request.group_id, failure.reason)
    return replace(request, index=request.index + 1)


class LocalFleet:
    """One worker in this process: what tests, dry runs and evaluations without Ray use."""

    def __init__(self, worker: RolloutWorker) -> None:
        self.worker = worker
        self.stats = FleetStats()
        self._batches: dict[int, tuple[list[GroupRequest], PolicySetup, PolicyWeights]] = {}
        self._next_ticket = 0

    def submit(
        self, requests: Sequence[GroupRequest], setup: PolicySetup, weights: PolicyWeights
    ) -> int:
        """Keeps the batch until it is collected."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._batches[ticket] = (list(requests), setup, weights)
        return ticket

    def collect(self, ticket: int) -> list[GroupRollout]:
        """Runs the batch's groups one after another."""
        requests, setup, weights = self._batches.pop(ticket)
        self.worker.install(setup, weights)
        self.stats.busy_share = {self.worker.name: 1.0}
        self.stats.slowest = self.worker.name
        return [self._run(request) for request in sorted(requests, key=lambda r: r.group_id)]

    def _run(self, request: GroupRequest) -> GroupRollout:
        for attempt in range(MAX_REPLACEMENTS + 1):
            result = self.worker.rollout(request)
            if isinstance(result, GroupRollout):
                return result
            self.stats.failed_samples += 1
            request = replacement(request, result, attempt)
        raise AssertionError("replacement raises before the attempts run out")

    def budget_gradients(
        self, groups: Sequence[GroupRollout], gradients: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Vector-Jacobian products of a collected batch; groups without gradient cost nothing."""
        return [
            self.worker.budget_gradient(GradientRequest.of(group, gradient))
            if gradient.any()
            else np.zeros_like(gradient[0])
            for group, gradient in zip(groups, gradients, strict=True)
        ]

    def prefixes(self, requests: Sequence[PrefixRequest]) -> list[Prefixes]:
        """Language features and latency tokens, for a warm start."""
        return [self.worker.prefixes(request) for request in requests]

"""A fleet and a learner in this process, for tests that need no Ray."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.calibration import Calibration
from policy.config import PolicySetup
from policy.weights import PolicyWeights
from rollout.fleet import MAX_REPLACEMENTS, FleetStats, replacement
from rollout.group_rollout import GroupRollout
from rollout.requests import (
    AnyRequest,
    GradientRequest,
    GreedyRequest,
    GroupRequest,
    Prefixes,
    PrefixRequest,
    ScoreRequest,
)
from rollout.worker import RolloutWorker


class LocalFleet:
    """One worker in this process; implements `rollout.fleet.Fleet` for `PolicyWeights`."""

    def __init__(self, worker: RolloutWorker) -> None:
        self.worker = worker
        self.stats = FleetStats()
        self._batches: dict[int, tuple[list[AnyRequest], PolicySetup, PolicyWeights]] = {}
        self._next_ticket = 0

    def submit(
        self, requests: Sequence[AnyRequest], setup: PolicySetup, weights: PolicyWeights
    ) -> int:
        """Keeps the batch until it is collected."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._batches[ticket] = (list(requests), setup, weights)
        return ticket

    def collect(self, ticket: int) -> list[GroupRollout]:
        """Runs the groups of the batch one after another."""
        requests, setup, weights = self._batches.pop(ticket)
        self.worker.install(setup, weights)
        self.stats.busy_share = {self.worker.name: 1.0}
        self.stats.slowest = self.worker.name
        return [self._run(request) for request in sorted(requests, key=lambda r: r.group_id)]

    def evaluate(
        self, requests: Sequence[GreedyRequest], setup: PolicySetup, weights: PolicyWeights
    ) -> list[GroupRollout]:
        """Runs greedy episodes one after another."""
        return self.collect(self.submit(requests, setup, weights))

    def _run(self, request: AnyRequest) -> GroupRollout:
        for attempt in range(MAX_REPLACEMENTS + 1):
            is_group = isinstance(request, GroupRequest)
            result = (self.worker.rollout if is_group else self.worker.greedy)(request)
            if isinstance(result, GroupRollout):
                return result
            self.stats.failed_samples += 1
            request = replacement(request, result, attempt)
        raise AssertionError("replacement raises before the attempts run out")

    def cheapest_ms(
        self,
        split: str,
        indices: Sequence[int],
        repeats: int,
        calibration: Calibration | None,
    ) -> np.ndarray:
        """Repeated latencies of the cheapest configuration: [N, repeats]."""
        return np.array(
            [self.worker.cheapest_ms(split, index, repeats, calibration) for index in indices]
        )

    def budget_gradients(
        self, groups: Sequence[GroupRollout], gradients: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Vector-Jacobian products of a collected batch; zero gradients are not computed."""
        return [
            self.worker.budget_gradient(GradientRequest.of(group, gradient))
            if gradient.any()
            else np.zeros_like(gradient[0])
            for group, gradient in zip(groups, gradients, strict=True)
        ]

    def prefixes(self, requests: Sequence[PrefixRequest]) -> list[Prefixes]:
        """Language features and latency tokens, for a warm start."""
        return [self.worker.prefixes(request) for request in requests]

    def scores(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Scores of configurations off the clock."""
        return [self.worker.score(request) for request in requests]

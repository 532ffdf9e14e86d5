"""The interface of a fleet, which runs groups; `launch.cluster.fleet` implements it over Ray.

Shapes: G members, D d_model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np

from envs.calibration import Calibration
from envs.spec import Knobs
from envs.tasks.sample_order import PLACES
from policy.config import PolicySetup
from rollout.group_rollout import GroupRollout
from rollout.profiling.records import ProfileRecord
from rollout.requests import (
    AnyRequest,
    FailedGroup,
    GreedyRequest,
    GroupRequest,
    Prefixes,
    PrefixRequest,
    ScoreRequest,
)

log = logging.getLogger(__name__)

MAX_REPLACEMENTS = 20
"""Number of unusable samples in a row after which the data set is considered broken."""


@dataclass(slots=True, kw_only=True)
class FleetStats:
    """Counts since the start of the run, and shares of the last batch.

    Attributes:
        failed_samples: number of groups replaced because their sample was unusable.
        reruns: number of groups run again because their actor was lost.
        restarts: number of actor restarts.
        rejected: number of results refused because they do not prove which weights, actor and
            incarnation made them.
        busy_share: share of the last collection during which each actor was busy.
        waiting_share: share of it during which each actor waited for a sample to be loaded.
        slowest: name of the actor with the longest mean time per group in the last collection.
    """

    failed_samples: int = 0
    reruns: int = 0
    restarts: int = 0
    rejected: int = 0
    busy_share: dict[str, float] = field(default_factory=dict)
    waiting_share: dict[str, float] = field(default_factory=dict)
    slowest: str = ""

    def counts(self) -> dict[str, int]:
        """The counts since the start of the run, by name."""
        return {name: getattr(self, name) for name in COUNTS}

    def continue_from(self, counts: Mapping[str, int]) -> None:
        """Adds what a run had counted before it was resumed."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + counts.get(name, 0))


COUNTS = ("failed_samples", "reruns", "restarts", "rejected")

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
        """Waits, up to the fleet's time limits, for all groups of a batch."""
        ...

    def drop_batches(self) -> None:
        """Forgets all batches that were submitted and not collected."""
        ...

    def evaluate(
        self, requests: Sequence[GreedyRequest], setup: PolicySetup, weights: Weights
    ) -> list[GroupRollout]:
        """Runs greedy episodes under given weights; waits for all of them."""
        ...

    def prefixes(self, requests: Sequence[PrefixRequest]) -> list[Prefixes]:
        """Features and latency tokens for a warm start, in the order of the requests."""
        ...

    def cheapest_ms(
        self,
        split: str,
        indices: Sequence[int],
        repeats: int,
        calibration: Calibration | None,
    ) -> np.ndarray:
        """Repeated latencies of the cheapest configuration in calibrated ms: [N, repeats]."""
        ...

    def budget_gradients(
        self, groups: Sequence[GroupRollout], gradients: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Maps dL/d(latency token) [G, D] of each group to dL/d(budget token) [D]."""
        ...

    def scores(self, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
        """Scores of configurations off the clock, float32 [S, E] for each request."""
        ...


class MeasuringFleet(Fleet[Weights], Protocol[Weights]):
    """A fleet on devices with a clock, which runs single configurations without a controller."""

    @property
    def clock_name(self) -> str:
        """The clock that latencies are from."""
        ...

    def extreme_latencies(self, split: str, num_samples: int) -> np.ndarray:
        """Latencies in ms of the cheapest and the full configuration: [rounds, N, 2]."""
        ...

    def profile_each(
        self,
        plan: Sequence[tuple[int, Sequence[Knobs]]],
        split: str,
        what: str,
        calibration: Calibration | None = None,
    ) -> Iterator[list[ProfileRecord]]:
        """Runs each sample's configurations; yields its records, in the order of the plan."""
        ...


def replacement(request: AnyRequest, failure: FailedGroup, attempts: int) -> AnyRequest:
    """The request for another sample in place of an unusable one, which is logged.

    Raises:
        ValueError: MAX_REPLACEMENTS samples in a row were unusable; names the last reason.
    """
    if attempts >= MAX_REPLACEMENTS:
        raise ValueError(
            f"{attempts} samples in a row were unusable, the last one: {failure.reason}; "
            "check the data set"
        )
    log.warning("group %d left its sample out: %s", request.group_id, failure.reason)
    return replace(request, index=substitute(request.index, 1))


def substitute(index: int, attempt: int) -> int:
    """The index of a sample in place of an unusable one, far from those that a run reaches."""
    return index + PLACES // 2 + attempt - 1

"""Rollout actors and every limit of waiting."""

from __future__ import annotations

from dataclasses import dataclass

from envs.checks import check_within


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Rollout actors and every limit of waiting, in seconds.

    Attributes:
        address: Ray address; `auto` joins a running cluster, empty starts a local one if there is
            none.
        num_actors: rollout actors; 0 takes one for each GPU, or for each CPU core without GPUs.
        min_actors: the run stops if fewer can be kept.
        start_timeout_s: for an actor to load the model and warm up.
        group_timeout_s: for one group; an actor that takes longer is replaced.
        step_timeout_s: for a whole batch.
        learner_timeout_s: for one call to the learner.
        max_restarts: of one actor in a row without a finished group.
        latency_tolerance: largest relative deviation of an actor's reference latency from the
            fleet's median before it is named.
    """

    address: str = ""
    num_actors: int = 0
    min_actors: int = 1
    start_timeout_s: float = 600.0
    group_timeout_s: float = 120.0
    step_timeout_s: float = 1800.0
    learner_timeout_s: float = 300.0
    max_restarts: int = 5
    latency_tolerance: float = 0.15

    def __post_init__(self) -> None:
        check_within(self, "num_actors", "max_restarts", low=0)
        check_within(self, "min_actors", low=1)
        timeouts = ("start_timeout_s", "group_timeout_s", "step_timeout_s", "learner_timeout_s")
        check_within(self, *timeouts, "latency_tolerance", low=0, above=True)

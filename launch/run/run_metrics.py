"""A run's metrics for Prometheus, through Ray: what a dashboard or an alert needs of TensorBoard.

Ray's agent exposes them on every node's metrics port.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from envs.spec import Knobs
from learner.rewards import violations
from rollout.group_rollout import GroupRollout

BOUNDARIES_MS = [20.0, 35.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0, 3000.0]


class RunMetrics:
    """Phase of the loop, and episodes, latencies, violations, choices and restarts of each step."""

    def __init__(self) -> None:
        prefix = "latency_budget_train_"
        self._phase = Gauge(f"{prefix}phase", "1 for the part that is running.", ("phase",))
        self._step = Gauge(f"{prefix}step", "Number of steps that are done.")
        self._accuracy = Gauge(f"{prefix}accuracy", "Score within budget of the last step.")
        self._restarts = Gauge(f"{prefix}restarts", "Restarts of rollout actors so far.")
        self._episodes = Counter(f"{prefix}episodes", "Episodes by feasibility.", ("feasible",))
        self._violations = Counter(f"{prefix}violations", "Feasible episodes over their budget.")
        self._latency_ms = Histogram(
            f"{prefix}latency_ms", "Latency of an episode, calibrated ms.", BOUNDARIES_MS
        )
        self._choices = Counter(
            f"{prefix}choices", "Configurations that ran, by knob.", ("knob", "value")
        )
        self._running = ""

    def enter(self, phase: str) -> None:
        """A part of a step begins; an empty name for none."""
        if self._running:
            self._phase.set(0, tags={"phase": self._running})
        if phase:
            self._phase.set(1, tags={"phase": phase})
        self._running = phase

    def step(self, step: int, groups: Sequence[GroupRollout], scalars: Mapping[str, float]) -> None:
        """A step is done."""
        self._step.set(step + 1)
        self._restarts.set(scalars["fleet/restarts"])
        self._accuracy.set(scalars["at_a_glance/accuracy_sampled"])
        for group, is_over_G in zip(groups, violations(groups), strict=True):
            feasible = "yes" if group.feasible else "no"
            self._episodes.inc(group.group_size, tags={"feasible": feasible})
            if group.feasible and is_over_G.any():
                self._violations.inc(int(is_over_G.sum()))
            for action, latency_ms in zip(group.actions, group.latencies_ms, strict=True):
                self._latency_ms.observe(float(latency_ms))
                for knob, value in Knobs.from_indices(action).to_json().items():
                    self._choices.inc(tags={"knob": knob, "value": str(value)})

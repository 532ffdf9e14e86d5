"""The state of a training run and the pieces of its loop: drawing, collecting, logging, saving."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from envs.calibration import Calibration
from envs.prices import FREE
from envs.reward import BudgetReward, ReferenceReward, Reward, RewardFunction
from envs.tasks.sample_order import first_index
from launch.analysis.interleaved import Comparison
from launch.cluster.versions import git_revision, package_versions, python_version
from launch.run.recipes import JointGRPOConfig, to_json
from launch.run.reporting import Reporter
from launch.run.resume import budgets_to_state
from launch.run.scores import scored
from learner.checkpoint import Checkpoint, CheckpointStore
from learner.lambda_control import LambdaControl
from learner.rewards import rewards_of, violations
from learner.update import UpdateRecord
from policy.config import PolicySetup
from policy.controller import Controller
from policy.weights import PolicyWeights, weights_sha256
from rollout.fingerprint import Fingerprint
from rollout.fleet import Fleet
from rollout.group_rollout import GroupRollout
from rollout.requests import GroupRequest


class LearnerLike(Protocol):
    """The learner, in this process or in an actor."""

    def learn_from_groups(
        self,
        groups: Sequence[GroupRollout],
        score_NG: np.ndarray,
        constraint_NG: np.ndarray,
        worth: RewardFunction | None = None,
    ) -> Any:
        """See `learner.learner.Learner.learn_from_groups`."""
        ...

    def learn_from_memory(self, groups: Sequence[GroupRollout]) -> None:
        """See `learner.learner.Learner.learn_from_memory`."""
        ...

    def update(self, measured: Any, budget_token_grads: Sequence[np.ndarray]) -> UpdateRecord:
        """See `learner.learner.Learner.update`."""
        ...

    def weights(self) -> Any:
        """The current weights, or a reference to them, for the fleet."""
        ...

    def publish(self, weights: PolicyWeights) -> Any:
        """The given weights, in the form that `weights` returns."""
        ...

    def fetch(self, weights: Any) -> PolicyWeights:
        """The weights to which a result of `weights` or `publish` refers."""
        ...

    def snapshot(self) -> tuple[Controller, dict[str, Any]]:
        """The controller and the learner's state after the last update, for a checkpoint."""
        ...


@dataclass(slots=True, kw_only=True)
class Stopwatch:
    """Seconds spent in each part of a step.

    Attributes:
        seconds: by name of the part.
        on_part: called with the name of a part that begins, and with an empty one when it ends.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    on_part: Callable[[str], object] = lambda _name: None

    @contextmanager
    def part(self, name: str):
        """Adds the time of the `with` block to a part."""
        started = time.perf_counter()
        self.on_part(name)
        try:
            yield
        finally:
            self.on_part("")
            elapsed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def take(self) -> dict[str, float]:
        """Returns the parts and their sum as scalars, and resets them."""
        seconds, self.seconds = self.seconds, {}
        total = sum(seconds.values())
        return {**{f"time/{n}_s": s for n, s in seconds.items()}, "time/step_s": total}


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A batch in flight: its step, its ticket and the weights that act in it."""

    step: int
    ticket: int
    weights: Any


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything that the training loop works with.

    The loop can be left and entered again, because submitted and collected batches are kept here.

    Attributes:
        config: the whole configuration.
        setup: controller configuration and budgets.
        fleet: runs the groups.
        learner: owns the weights.
        reporter: writes scalars and progress lines.
        store: keeps checkpoints.
        lambda_control: lambda by range of budgets.
        calibration: speed of the devices when the run began, which its milliseconds refer to.
        fingerprint: fingerprint of the frozen model, its tasks and devices; None in some tests.
        comparison: what the run is compared with at its end; None for nothing.
        rival_levels: accuracy within the evaluation's budgets of the tables that the run is
            compared with, on the profile that they are chosen on, by name; empty without one.
        device_ms: device time of all episodes of the training so far, in calibrated ms.
        next_step: the first step that is not done yet.
        evaluation_pending: whether the weights before `next_step` are still to be evaluated.
        is_stopping: called between steps; the loop ends when it returns True.
        uri: where everything is also stored; empty for a run in a local folder.
        on_saved: called with the folder of every new checkpoint, for instance to copy it.
        on_step: called with the number, the groups and the scalars of every step that is done.
        in_flight: batches that are submitted but not yet learned from.
    """

    config: JointGRPOConfig
    setup: PolicySetup
    fleet: Fleet[Any]
    learner: LearnerLike
    reporter: Reporter
    store: CheckpointStore
    lambda_control: LambdaControl
    calibration: Calibration
    fingerprint: Fingerprint | None = None
    comparison: Comparison | None = None
    rival_levels: Mapping[str, float] = field(default_factory=dict)
    device_ms: float = 0.0
    next_step: int = 0
    evaluation_pending: bool = False
    uri: str = ""
    is_stopping: Callable[[], bool] = lambda: False
    on_saved: Callable[[Path], object] = lambda _path: None
    on_step: Callable[[int, Sequence[GroupRollout], Mapping[str, float]], object] = (
        lambda _step, _groups, _scalars: None
    )
    watch: Stopwatch = field(default_factory=Stopwatch)
    in_flight: deque[Submitted] = field(default_factory=deque)
    _collected: list[GroupRollout] | None = None
    _committed_step: int = -1

    def draw(self, step: int) -> list[GroupRequest]:
        """The groups of a step, a function of (seed, step) alone, so that resuming is exact.

        Their samples follow one another in the order of the run's seed.
        """
        rng = np.random.default_rng([self.config.seed, step])
        first = first_index(self.config.seed) + step * self.config.groups_per_step
        return [
            GroupRequest(
                group_id=step * self.config.groups_per_step + number,
                run_seed=self.config.seed,
                step=step,
                split="train",
                index=first + number,
                budget_ms=self.setup.budgets.draw(rng),
                price=FREE if self.setup.prices is None else self.setup.prices.draw(rng),
                group_size=self.config.group_size,
            )
            for number in range(self.config.groups_per_step)
        ]

    def broadcast(self) -> None:
        """Submits the batches of up to `max_staleness` steps ahead, with the current weights."""
        ahead = self.next_step + self.config.max_staleness
        drawn = self.in_flight[-1].step + 1 if self.in_flight else self.next_step
        with self.watch.part("broadcast"):
            for step in range(drawn, min(ahead, self.config.steps - 1) + 1):
                self.resubmit(step, self.learner.weights())

    def resubmit(self, step: int, weights: Any) -> None:
        """Submits the batch of one step with given weights."""
        ticket = self.fleet.submit(self.draw(step), self.setup, weights)
        self.in_flight.append(Submitted(step=step, ticket=ticket, weights=weights))

    def collect(self) -> list[GroupRollout]:
        """The groups of the next step; the same ones until `finish_step`.

        Further configurations of their samples are scored too, which are not measured.
        """
        if self._collected is None:
            with self.watch.part("wait"):
                groups = self.fleet.collect(self.in_flight[0].ticket)
            with self.watch.part("score"):
                config = self.config
                self._collected = scored(self.fleet, groups, config.num_scored, config.seed)
        return self._collected

    def worth(self) -> RewardFunction:
        """The reward that this run maximises, with the current lambda."""
        if self.config.reward == "reference":
            return ReferenceReward()
        cost = self.lambda_control.violation_cost
        return BudgetReward(violation_cost=cost, full_ms=self.calibration.full_ms)

    def rewards(self, groups: Sequence[GroupRollout]) -> Reward:
        """The rewards of a batch with the current lambda, [N, G] each."""
        return rewards_of(groups, self.worth())

    def finish_step(self, groups: Sequence[GroupRollout]) -> None:
        """Updates lambda from the violation rates and marks the step as done.

        Whether an evaluation is due is part of the state, so that an interrupted one runs again
        when the run is resumed.
        """
        self.lambda_control.update(
            [group.budget_ms for group in groups],
            violations(groups).mean(1),
            [group.feasible for group in groups],
        )
        self.device_ms += float(sum(group.latencies_ms.sum() for group in groups))
        self.next_step += 1
        self.evaluation_pending = self._is_evaluation_due()
        self.in_flight.popleft()
        self._collected = None

    def _is_evaluation_due(self) -> bool:
        """Whether the last step was reached, or one after which the run is evaluated."""
        is_last = self.next_step == self.config.steps
        return is_last or self.config.evaluation.is_due(self.next_step)

    def commit_if_due(self) -> None:
        """Commits the previous step, at the configured interval, while the fleet runs the next."""
        if self.next_step % self.config.checkpoint_every == 0:
            self.commit()

    def commit(self, metric: float | None = None) -> Path | None:
        """Writes a checkpoint of the whole state before `next_step`, unless there is one.

        Args:
            metric: evaluation of the current weights, by which the best checkpoint is kept; the
                step is then committed again.

        Returns:
            The checkpoint's folder, None if there was nothing to do.
        """
        if metric is None and self._committed_step == self.next_step:
            return None
        with self.watch.part("checkpoint"):
            controller, learner_state = self.learner.snapshot()
            learner_state = {**learner_state, "in_flight": self._weights_in_flight()}
            path = self.store.save(self.next_step, controller, learner_state, self._state(), metric)
            self.on_saved(path)
            self.reporter.committed()
        self._committed_step = self.next_step
        return path

    def go_back_to(self, checkpoint: Checkpoint) -> None:
        """Continues from a checkpoint: its reports, and its batches in flight once more."""
        self.lambda_control.load_state_dict(checkpoint.state["lambda_control"])
        self.device_ms = float(checkpoint.state["device_ms"])
        self.next_step = self._committed_step = int(checkpoint.state["next_step"])
        self.evaluation_pending = checkpoint.state.get("evaluation_pending", False)
        self.reporter.begin_at(self.next_step, evaluation_pending=self.evaluation_pending)
        self.in_flight.clear()
        self._collected = None
        for batch in checkpoint.learner_state["in_flight"]:
            arrays = {name: tensor.numpy() for name, tensor in batch["weights"].items()}
            weights = PolicyWeights(
                version=batch["version"], sha256=weights_sha256(arrays), arrays=arrays
            )
            self.resubmit(batch["step"], self.learner.publish(weights))

    def _weights_in_flight(self) -> list[dict[str, Any]]:
        """Older weights of batches in flight, which a resumed run needs to submit them again."""
        current = self.learner.weights()
        found = []
        for batch in self.in_flight:
            if batch.weights.version != current.version:
                weights = self.learner.fetch(batch.weights)
                tensors = {n: torch.from_numpy(np.array(a)) for n, a in weights.arrays.items()}
                found.append({"step": batch.step, "version": weights.version, "weights": tensors})
        return found

    def _state(self) -> dict[str, Any]:
        return {
            "next_step": self.next_step,
            "evaluation_pending": self.evaluation_pending,
            "device_ms": self.device_ms,
            "fleet_counts": self.fleet.stats.counts(),
            "seed": self.config.seed,
            "lambda_control": self.lambda_control.state_dict(),
            "budgets": budgets_to_state(self.setup.budgets),
            "calibration": asdict(self.calibration),
            "fingerprint": self.fingerprint.to_json() if self.fingerprint else None,
            "latency_source": self.reporter.label or "measured",
            "configuration": to_json(self.config),
            "git_revision": git_revision(),
            "packages": package_versions(),
            "python": python_version(),
        }

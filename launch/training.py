"""The pieces around the loop: what is drawn at a step, what is logged, what is saved."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from envs.reward import BudgetReward, LambdaByBudget, Reward, RewardFunction
from envs.spec import BudgetRange, BudgetSampler
from launch.calibration import Calibration
from launch.evaluation import evaluate, feasible_budgets
from launch.plots import choices_figure, latency_figure
from launch.recipes import JointGRPOConfig
from launch.reporting import Reporter
from learner.checkpoint import Checkpoint, CheckpointStore
from learner.learner import UpdateRecord
from learner.metrics import (
    rollout_scalars,
    stage_scalars,
    update_scalars,
    violations,
)
from policy.controller import Controller, ControllerConfig
from rollout.batch import GroupRollout
from rollout.fleet import Fleet
from rollout.worker import GroupRequest, PolicySetup

PACKAGES = ("torch", "transformers", "ray", "numpy", "gymnasium", "safetensors")


class Stopped(Exception):
    """The run was asked to stop; whoever called the loop writes a checkpoint."""


class Pending(Protocol):
    """An update that waits for the vector-Jacobian products."""

    @property
    def latency_token_grads(self) -> Sequence[np.ndarray]:
        """dL/d(latency token) [G, D] of each group."""
        ...


class LearnerLike(Protocol):
    """The learner, in this process or in an actor."""

    def prepare(
        self, groups: Sequence[GroupRollout], score_NG: np.ndarray, constraint_NG: np.ndarray
    ) -> Any:
        """First half of an update; see `learner.learner.Learner.prepare`."""
        ...

    def apply(self, pending: Any, budget_token_grads: Sequence[np.ndarray]) -> UpdateRecord:
        """Second half of an update."""
        ...

    def weights(self) -> Any:
        """The current weights, or a reference to them, for the fleet."""
        ...

    def snapshot(self) -> tuple[Controller, dict[str, Any]]:
        """The controller and the learner's state, for a checkpoint."""
        ...


@dataclass(slots=True, kw_only=True)
class Stopwatch:
    """Seconds by part of a step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str):
        """Adds the block's time to a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def take(self) -> dict[str, float]:
        """The parts, and their sum, as scalars; starts anew."""
        seconds, self.seconds = self.seconds, {}
        total = sum(seconds.values())
        return {**{f"time/{n}_s": s for n, s in seconds.items()}, "time/step_s": total}


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything that one run of the loop works with.

    Attributes:
        config: the whole configuration.
        setup: controller configuration and budgets.
        fleet: runs groups.
        learner: owns the weights.
        reporter: shows numbers.
        store: keeps checkpoints.
        steering: lambda by budget and its rule.
        calibration: the devices as they were when the run began.
        next_step: the first step that is not done yet.
        is_stopping: asked between steps; True ends the loop.
        on_saved: called with the folder of every checkpoint, such as to copy it elsewhere.
    """

    config: JointGRPOConfig
    setup: PolicySetup
    fleet: Fleet[Any]
    learner: LearnerLike
    reporter: Reporter
    store: CheckpointStore
    steering: LambdaByBudget
    calibration: Calibration
    next_step: int = 0
    is_stopping: Callable[[], bool] = lambda: False
    on_saved: Callable[[Path], object] = lambda _path: None
    watch: Stopwatch = field(default_factory=Stopwatch)
    last_metric: float | None = None

    def draw(self, step: int) -> list[GroupRequest]:
        """The groups of a step: a function of (seed, step) alone, so that resuming is exact."""
        rng = np.random.default_rng([self.config.seed, step])
        return [
            GroupRequest(
                group_id=step * self.config.groups_per_step + number,
                run_seed=self.config.seed,
                step=step,
                split="train",
                index=int(rng.integers(2**31)),
                budget_ms=self.setup.budgets.draw(rng),
                group_size=self.config.group_size,
            )
            for number in range(self.config.groups_per_step)
        ]

    def reward_function(self) -> RewardFunction:
        """The run's reward, with the lambda in force."""
        reward = self.config.reward_function()
        if isinstance(reward, BudgetReward):
            reward.violation_cost = self.steering.costs
        return reward

    def finish_step(self, groups: Sequence[GroupRollout]) -> None:
        """Lets lambda follow the violation rate of the feasible budgets; the step is done."""
        self.steering.update([g.budget_ms for g in groups], violations(groups).mean(1))
        self.next_step += 1

    def report(
        self, step: int, groups: Sequence[GroupRollout], reward: Reward, update: UpdateRecord
    ) -> None:
        """Writes a step's numbers, histograms and progress line."""
        stats = self.fleet.stats
        times = self.watch.take()
        num_episodes = sum(g.group_size for g in groups)
        scalars = {
            **update_scalars(update, reward),
            **self.steering.scalars(),
            **rollout_scalars(groups, self.setup.budgets),
            **stage_scalars(groups),
            **times,
            "time/episodes_per_s": num_episodes / max(times["time/step_s"], 1e-9),
            "fleet/failed_samples": stats.failed_samples,
            "fleet/reruns": stats.reruns,
            "fleet/restarts": stats.restarts,
            "fleet/rejected": stats.rejected,
            **{f"busy/{name}": share for name, share in stats.busy_share.items()},
        }
        self.reporter.scalars(step, scalars)
        self.reporter.progress(step, scalars, stats.slowest)
        if step % 10 == 0:
            self.reporter.choices(step, groups)
            self.reporter.distributions(step, "advantages/reward", reward.total.ravel())

    def evaluate(self, step: int) -> None:
        """Greedy, on held-out samples, over all feasible budgets."""
        settings = self.config.evaluation
        result = evaluate(
            self.fleet,
            self.setup,
            self.learner.weights(),
            split="validation",
            num_samples=settings.num_samples,
            budgets_ms=feasible_budgets(self.setup.budgets, settings.num_budgets).tolist(),
        )
        scalars = result.scalars("evaluation")
        self.reporter.scalars(step, scalars)
        self.last_metric = result.in_budget_accuracy
        self.reporter.figure(
            step, "evaluation/choices", choices_figure(result.budgets_ms, result.actions)
        )
        self.reporter.figure(
            step, "evaluation/latency", latency_figure(result.budgets_ms, result.latencies_ms)
        )
        self.reporter.say(
            f"evaluation after step {step + 1}: in budget "
            f"{scalars['evaluation/in_budget_accuracy']:.3f}, violations "
            f"{scalars['evaluation/violation']:.1%}"
        )

    def save(self) -> Path:
        """Commits the run's whole state, as it is before `next_step`."""
        controller, learner_state = self.learner.snapshot()
        sampler = self.setup.budgets
        state = {
            "next_step": self.next_step,
            "seed": self.config.seed,
            "steering": self.steering.state_dict(),
            "budgets": {
                "low_ms": sampler.range.low_ms,
                "high_ms": sampler.range.high_ms,
                "feasible_from_ms": sampler.feasible_from_ms,
                "infeasible_share": sampler.infeasible_share,
                "are_stated": self.config.budget.fixed() is not None,
            },
            "calibration": asdict(self.calibration),
            "latency_source": self.reporter.label or "measured",
            "configuration": repr(self.config),
            "git_revision": git_revision(),
            "packages": {name: version(name) for name in PACKAGES},
            "python": platform.python_version(),
        }
        path = self.store.save(self.next_step, controller, learner_state, state, self.last_metric)
        self.on_saved(path)
        return path


def budgets_from_state(state: dict[str, Any]) -> BudgetSampler:
    """The budget sampler that a checkpoint's run used."""
    saved = state["budgets"]
    return BudgetSampler(
        range=BudgetRange(low_ms=saved["low_ms"], high_ms=saved["high_ms"]),
        feasible_from_ms=saved["feasible_from_ms"],
        infeasible_share=saved["infeasible_share"],
    )


def calibration_from_state(state: dict[str, Any]) -> Calibration:
    """How fast the devices of a checkpoint's run were when it began."""
    return Calibration(**state["calibration"])


def check_resumable(checkpoint: Checkpoint, config: JointGRPOConfig, label: str) -> None:
    """Raises ValueError if a checkpoint belongs to a run that cannot be continued like this."""
    state = checkpoint.state
    source = label or "measured"
    if state["seed"] != config.seed:
        raise ValueError(
            f"{checkpoint.path} was made with seed {state['seed']}, not {config.seed}: "
            "give that seed or a new run-dir"
        )
    if state["latency_source"] != source:
        raise ValueError(
            f"{checkpoint.path} was trained with latencies from {state['latency_source']}, not "
            f"from {source}: use a new run-dir"
        )


def controller_config(d_model: int, budgets: BudgetSampler) -> ControllerConfig:
    """The controller of a model's width and a run's budgets."""
    return ControllerConfig(
        d_model=d_model,
        budget_low_ms=budgets.range.low_ms,
        budget_high_ms=budgets.range.high_ms,
    )


def git_revision() -> str:
    """The project's commit, or `unknown` where there is no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"

"""The learner's actor, seen from the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from launch.jobs import LOST, kill, last_line
from launch.recipes import JointGRPOConfig
from learner.actor import LearnerActor
from learner.learner import UpdateRecord
from policy.controller import Controller, ControllerConfig
from rollout.actor import PublishedWeights
from rollout.batch import GroupRollout


class LearnerLostError(RuntimeError):
    """The learner's process is gone; the run goes on from its last checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePending:
    """An update that waits inside the learner's actor."""

    latency_token_grads: list[np.ndarray]


class RemoteLearner:
    """The learner's actor, seen from the driver; every call is bounded.

    Raises:
        LearnerLostError: from every call, if the actor is gone or does not answer in time.
    """

    def __init__(
        self,
        controller: ControllerConfig,
        config: JointGRPOConfig,
        inspection_folder: Path,
        state: dict[str, Any] | None,
    ) -> None:
        self.controller = controller
        self.timeout_s = config.cluster.learner_timeout_s
        actor_class: Any = ray.remote(num_cpus=0, max_restarts=0)(LearnerActor)
        self.actor = actor_class.options(max_task_retries=0).remote(
            controller, config.learner, config.seed, inspection_folder, state
        )
        self._published: PublishedWeights | None = None

    def prepare(
        self, groups: Sequence[GroupRollout], score_NG: np.ndarray, constraint_NG: np.ndarray
    ) -> RemotePending:
        """First half of an update."""
        grads = self._get(self.actor.prepare.remote(groups, score_NG, constraint_NG), "prepare")
        return RemotePending(latency_token_grads=grads)

    def apply(
        self, pending: RemotePending, budget_token_grads: Sequence[np.ndarray]
    ) -> UpdateRecord:
        """Second half of the update."""
        self._published = None
        return self._get(self.actor.apply.remote(budget_token_grads), "apply")

    def weights(self) -> PublishedWeights:
        """A reference to the current weights, owned by the driver."""
        if self._published is None:
            proof, arrays = self.actor.weights.options(num_returns=2).remote()
            version, sha256 = self._get(proof, "weights")
            self._published = PublishedWeights(version=version, sha256=sha256, refs=(arrays,))
        return self._published

    def snapshot(self) -> tuple[Controller, dict[str, Any]]:
        """The controller and the learner's state, for a checkpoint."""
        state = self._get(self.actor.state.remote(), "state")
        controller = Controller(self.controller)
        controller.load_state_dict(state["controller"])
        return controller, state

    def shutdown(self) -> None:
        """Ends the actor."""
        kill(self.actor)

    def _get(self, ref: Any, what: str) -> Any:
        try:
            return ray.get(ref, timeout=self.timeout_s)
        except RayTaskError as error:
            if isinstance(error, LOST):
                raise LearnerLostError(f"learner lost in {what}: {last_line(error)}") from None
            raise
        except GetTimeoutError:
            self.shutdown()
            raise LearnerLostError(
                f"the learner did not answer {what} within {self.timeout_s:.0f} s"
            ) from None
        except LOST as error:
            raise LearnerLostError(f"learner lost in {what}: {last_line(error)}") from None

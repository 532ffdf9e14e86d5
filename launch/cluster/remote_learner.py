"""The driver's view of the learner's actor; the driver holds everything needed to restart it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError

from envs.reward import RewardFunction
from launch.cluster.fleet import publish
from launch.cluster.slots import LOST, WITHOUT_GPUS, kill, last_line, raised_by_our_code
from launch.cluster.waiting import telling
from learner.actor import LearnerActor, Proof
from learner.archive import Archive
from learner.config import LearnerConfig
from learner.update import NonFiniteUpdateError, UpdateRecord
from policy.config import ControllerConfig
from policy.controller import Controller
from policy.weights import PolicyWeights
from rollout.actor import PublishedWeights
from rollout.group_rollout import GroupRollout


class LearnerLostError(RuntimeError):
    """The learner's process is gone; `RemoteLearner.restart` starts another one in its state."""


class LearnerStateLostError(LearnerLostError):
    """The learner's state that the driver held was lost as well, with a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteGradient:
    """A measured gradient, the rest of which stays in the learner's actor."""

    latency_token_grads: list[np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerState:
    """The learner's state after its last update: references that the driver owns.

    Attributes:
        weights: the controller's weights, in the form that rollout actors take.
        rest: optimizer state and counters.
        archive: for each part that never changes, the reference of the dict that holds it.
    """

    weights: PublishedWeights
    rest: Any
    archive: Mapping[str, Any]

    @classmethod
    def of(cls, proof: Proof, arrays: Any, rest: Any, new: Any, before: Self | None) -> Self:
        """The state that a proof is for; what is not `new` was handed over before."""
        refs = before.archive if before is not None else {}
        return cls(
            weights=PublishedWeights(version=proof.version, sha256=proof.sha256, refs=(arrays,)),
            rest=rest,
            archive={name: refs.get(name, new) for name in proof.archive},
        )


class RemoteArchive(Mapping[str, bytes]):
    """An archive of references, fetched as far as it is read.

    Args:
        refs: for each name the reference of the dict that holds its content.
        fetch: fetches such a dict.
    """

    def __init__(self, refs: Mapping[str, Any], fetch: Callable[[Any], Archive]) -> None:
        self._refs, self._fetch = refs, fetch
        self._fetched: tuple[Any, Archive] = None, {}

    def __getitem__(self, name: str) -> bytes:
        ref = self._refs[name]
        if self._fetched[0] is not ref:
            self._fetched = ref, self._fetch(ref)
        return self._fetched[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)


class RemoteLearner:
    """The driver's view of the learner's actor; every call has a time limit.

    Args:
        controller: sizes and budgets.
        learner: optimizer and loss.
        seed: seed of the run.
        timeout_s: time limit of one call.
        state: state of an earlier learner to continue from.

    Raises:
        NonFiniteUpdateError: from `update`; see `learner.update`.
        LearnerLostError: from every call, if the actor is gone or does not answer in time;
            LearnerStateLostError if an object that it made is gone as well, with its node.
    """

    def __init__(
        self,
        controller: ControllerConfig,
        learner: LearnerConfig,
        *,
        seed: int,
        timeout_s: float,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.controller = controller
        self.timeout_s = timeout_s
        self._arguments = (controller, learner, seed)
        self._start(state)

    def _start(self, state: dict[str, Any] | None) -> None:
        actor_class: Any = ray.remote(num_cpus=0, max_restarts=0)(LearnerActor)
        options = {"max_task_retries": 0, "runtime_env": {"env_vars": WITHOUT_GPUS}}
        self.actor = actor_class.options(**options).remote(*self._arguments, state)
        proof, *parts = self.actor.state.options(num_returns=4).remote()
        self._state = LearnerState.of(self._get(proof, "state"), *parts, before=None)

    def restart(self) -> None:
        """Starts another actor from the state after the last update; no work is repeated.

        Raises:
            LearnerStateLostError: the state is gone as well.
            LearnerLostError: the new actor was lost too; try again.
        """
        try:
            _, state = self.snapshot()
            state["archive"] = dict(state["archive"])
        except LearnerLostError as error:
            raise LearnerStateLostError(str(error)) from None
        self.shutdown()
        self._start(state)

    def learn_from_groups(
        self,
        groups: Sequence[GroupRollout],
        score_NG: np.ndarray,
        constraint_NG: np.ndarray,
        worth: RewardFunction | None = None,
    ) -> RemoteGradient:
        """See `Learner.learn_from_groups`."""
        call = self.actor.learn_from_groups.remote(groups, score_NG, constraint_NG, worth)
        grads = self._get(call, "learn from groups")
        return RemoteGradient(latency_token_grads=grads)

    def learn_from_memory(self, groups: Sequence[GroupRollout]) -> None:
        """See `Learner.learn_from_memory`; the actor has the groups already."""
        self._get(self.actor.learn_from_memory.remote(), "learn from memory")

    def update(
        self, measured: RemoteGradient, budget_token_grads: Sequence[np.ndarray]
    ) -> UpdateRecord:
        """See `Learner.update`."""
        first, *parts = self.actor.update.options(num_returns=4).remote(budget_token_grads)
        record, proof = self._get(first, "update")
        self._state = LearnerState.of(proof, *parts, before=self._state)
        return record

    def weights(self) -> PublishedWeights:
        """A reference to the current weights, owned by the driver."""
        return self._state.weights

    def publish(self, weights: PolicyWeights) -> PublishedWeights:
        """A reference to older weights, for batches that were in flight at a checkpoint."""
        return publish(weights)

    def fetch(self, weights: PublishedWeights) -> PolicyWeights:
        """The weights that a reference points to."""
        arrays: Mapping[str, np.ndarray] = self._get(weights.refs[0], "weights")
        return PolicyWeights(version=weights.version, sha256=weights.sha256, arrays=arrays)

    def snapshot(self) -> tuple[Controller, dict[str, Any]]:
        """The controller and the learner's state after the last update; works without the actor.

        The state's archive is fetched when it is read.
        """
        arrays = self.fetch(self._state.weights).arrays
        controller = Controller(self.controller)
        controller.load_numpy(arrays)
        state = {
            "controller": {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()},
            "archive": RemoteArchive(self._state.archive, lambda ref: self._get(ref, "archive")),
            **self._get(self._state.rest, "optimizer"),
        }
        return controller, state

    def shutdown(self) -> None:
        """Kills the actor."""
        kill(self.actor)

    def _get(self, ref: Any, what: str) -> Any:
        try:
            with telling(f"the learner: {what}, at most {self.timeout_s:.0f} s"):
                return ray.get(ref, timeout=self.timeout_s)
        except RayTaskError as error:
            if isinstance(error, LOST):
                raise _lost(what, error) from None
            if isinstance(error.cause, NonFiniteUpdateError):
                raise error.cause from None
            raise
        except GetTimeoutError:
            self.shutdown()
            raise LearnerLostError(
                f"the learner did not answer {what} within {self.timeout_s:.0f} s"
            ) from None
        except LOST as error:
            if raised_by_our_code(error):
                raise RuntimeError(f"the learner could not start: {last_line(error)}") from None
            raise _lost(what, error) from None


def _lost(what: str, error: BaseException) -> LearnerLostError:
    kind = LearnerStateLostError if isinstance(error, ObjectLostError) else LearnerLostError
    return kind(f"the learner was lost in {what}: {last_line(error)}")

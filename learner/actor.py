"""The Ray actor around `Learner`; the driver holds references to its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from envs.reward import RewardFunction
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.update import MeasuredGradient, UpdateRecord
from policy.config import ControllerConfig
from policy.controller import Controller
from policy.weights import weights_sha256
from rollout.group_rollout import GroupRollout


def initial_controller(config: ControllerConfig, seed: int) -> Controller:
    """The untrained controller of a run, determined by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Controller(config)


class LearnerActor:
    """One learner in its own process; raises on start if the state does not fit."""

    def __init__(
        self,
        controller: ControllerConfig,
        config: LearnerConfig,
        seed: int,
        state: dict[str, Any] | None,
    ) -> None:
        torch.set_num_threads(1)
        self.learner = Learner(initial_controller(controller, seed), config, seed)
        if state is not None:
            self.learner.load_state_dict(state)
        self._measured: MeasuredGradient | None = None

    def learn_from_groups(
        self,
        groups: Sequence[GroupRollout],
        score_NG: np.ndarray,
        constraint_NG: np.ndarray,
        worth: RewardFunction | None = None,
    ) -> list[np.ndarray]:
        """See `Learner.learn_from_groups`; returns dL/d(latency token) of each group."""
        self._measured = self.learner.learn_from_groups(groups, score_NG, constraint_NG, worth)
        return self._measured.latency_token_grads

    def learn_from_memory(self) -> None:
        """See `Learner.learn_from_memory`; the groups are those measured last."""
        assert self._measured is not None, "learn from groups first"
        self.learner.learn_from_memory(self._measured.groups)

    def update(
        self, budget_token_grads: Sequence[np.ndarray]
    ) -> tuple[tuple[UpdateRecord, str], dict[str, np.ndarray], dict[str, Any]]:
        """See `Learner.update`.

        Returns:
            (record, hash of the weights), weights, and the rest of the state. With num_returns=3
            the caller owns all three and can continue if this process dies.
        """
        assert self._measured is not None, "learn from groups first"
        measured, self._measured = self._measured, None
        record = self.learner.update(measured, budget_token_grads)
        arrays = self.learner.controller.to_numpy()
        return (record, weights_sha256(arrays)), arrays, self._rest()

    def state(
        self,
    ) -> tuple[tuple[int, str], dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
        """(version, hash), weights, the rest of the state, and the initial controller."""
        arrays = self.learner.controller.to_numpy()
        initial = dict(self.learner.initial_controller.state_dict())
        return (self.learner.version, weights_sha256(arrays)), arrays, self._rest(), initial

    def _rest(self) -> dict[str, Any]:
        """The state without the current and the initial weights."""
        state = self.learner.state_dict()
        return {k: v for k, v in state.items() if k not in ("controller", "initial_controller")}

"""The Ray actor around `Learner`; the driver holds references to its results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.reward import RewardFunction
from learner.archive import Archive
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.update import MeasuredGradient, UpdateRecord
from policy.config import ControllerConfig
from policy.controller import Controller
from policy.weights import weights_sha256
from rollout.group_rollout import GroupRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What tells a state: version and hash of the weights, names of what is in the archive."""

    version: int
    sha256: str
    archive: tuple[str, ...]


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
        self._shipped: set[str] = set()

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
    ) -> tuple[tuple[UpdateRecord, Proof], dict[str, np.ndarray], dict[str, Any], Archive]:
        """See `Learner.update`.

        Returns:
            (record, proof), weights, the rest of the state, and what is new in its archive. With
            num_returns=4 the caller owns all of it and can continue if this process dies.
        """
        assert self._measured is not None, "learn from groups first"
        measured, self._measured = self._measured, None
        record = self.learner.update(measured, budget_token_grads)
        proof, arrays, rest, new = self.state()
        record = replace(
            record, state_bytes=size_of((arrays, rest, new)), memory_bytes=resident_bytes()
        )
        return (record, proof), arrays, rest, new

    def state(self) -> tuple[Proof, dict[str, np.ndarray], dict[str, Any], Archive]:
        """The proof, weights, the rest of the state, and what is new in its archive since last."""
        arrays = self.learner.controller.to_numpy()
        state = self.learner.state_dict()
        archive: Archive = state.pop("archive")
        del state["controller"]
        new = {name: archive[name] for name in archive if name not in self._shipped}
        self._shipped = set(archive)
        proof = Proof(
            version=self.learner.version, sha256=weights_sha256(arrays), archive=tuple(archive)
        )
        return proof, arrays, state, new


def size_of(value: Any) -> int:
    """Bytes of all tensors, arrays and byte strings in a value."""
    if isinstance(value, Tensor | np.ndarray):
        return value.nbytes
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")

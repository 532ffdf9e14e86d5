"""The learner in this process, with what a checkpoint needs."""

from __future__ import annotations

from typing import Any

from learner.learner import Learner
from policy.controller import Controller
from policy.weights import PolicyWeights


class LocalLearner(Learner):
    """A `Learner` that hands out its controller and state for checkpoints."""

    def snapshot(self) -> tuple[Controller, dict[str, Any]]:
        """The controller and the learner's state, as they are between two updates."""
        return self.controller, self.state_dict()

    def publish(self, weights: PolicyWeights) -> PolicyWeights:
        """Weights need no reference in one process."""
        return weights

    def fetch(self, weights: PolicyWeights) -> PolicyWeights:
        """The same."""
        return weights

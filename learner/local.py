"""A learner in the process of the loop, for runs that need no cluster."""

from __future__ import annotations

from typing import Any

from learner.learner import Learner
from policy.controller import Controller
from policy.weights import PolicyWeights


class LocalLearner(Learner):
    """A `Learner` that hands out its controller and state for checkpoints."""

    def snapshot(self) -> tuple[Controller, dict[str, Any]]:
        """The controller and the learner's state after the last update."""
        return self.controller, self.state_dict()

    def publish(self, weights: PolicyWeights) -> PolicyWeights:
        """Returns the weights themselves: one process needs no references."""
        return weights

    def fetch(self, weights: PolicyWeights) -> PolicyWeights:
        """Returns the weights themselves."""
        return weights

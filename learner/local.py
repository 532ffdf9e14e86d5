"""The learner in this process, with what a checkpoint needs."""

from __future__ import annotations

from typing import Any

from learner.learner import Learner
from policy.controller import Controller


class LocalLearner(Learner):
    """A `Learner` that hands out its controller and state for checkpoints."""

    def snapshot(self) -> tuple[Controller, dict[str, Any]]:
        """The controller and the learner's state, as they are between two updates."""
        return self.controller, self.state_dict()

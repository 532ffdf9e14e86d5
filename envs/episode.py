"""The rules of an episode: what is seen, what may be chosen, what it costs, what was feasible.

An episode is three calls in this order: `look`, `begin` with the choices of stage 1, `finish` with
those of stage 2. G episodes of one sample and one pair of terms run together and share work.

Shapes: G episodes, D d_model. Choices are indices, one per head of the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.action_masks import is_allowed, stage1_mask, stage2_mask
from envs.calibration import PresentTime
from envs.reward import is_violation
from envs.spec import (
    STAGE1_HEADS,
    STAGE2_HEADS,
    Elapsed,
    Execution,
    Executor,
    Features,
    Sample,
    Stages,
    chosen_values,
    in_ms,
)
from envs.terms import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An episode that ended with an answer; its times include the controller's.

    Attributes:
        execution: what the frozen model did, without the controller's time.
        stages_ms: time of each stage on the device clock, ms.
        latency_ms: the sum of the stages that count toward the budget, in calibrated ms.
        device_ms: the same in ms of the device.
        wall_ms: the same on the wall clock.
    """

    execution: Execution
    stages_ms: dict[str, float]
    latency_ms: float
    device_ms: float
    wall_ms: float

    @classmethod
    def of(cls, execution: Execution, controller: Stages, present: PresentTime) -> Outcome:
        """An execution and the controller's own stages."""
        spent = sum(controller.values(), Elapsed())
        device_ms = execution.latency_ms + spent.ms
        return cls(
            execution=execution,
            stages_ms={**in_ms(controller), **execution.stages_ms},
            latency_ms=present.to_calibrated(device_ms),
            device_ms=device_ms,
            wall_ms=execution.wall_ms + spent.wall_ms,
        )


class EpisodeGroup:
    """G episodes of one (sample, budget, price) on a frozen model.

    A choice that is invalid ends its episode: it is not repaired, and the model does not run for
    it. Budgets and latencies are calibrated milliseconds; what the device measures is converted.

    Args:
        executor: the frozen model.
        sample: the question.
        terms: budget and price of all episodes.
        present: present time of the device that the executor runs on.
    """

    def __init__(
        self, executor: Executor, sample: Sample, terms: Terms, present: PresentTime
    ) -> None:
        self.sample, self.terms = sample, terms
        self.device_budget_ms = present.to_present(terms.budget_ms)
        self.session = executor.open(sample)
        self._d_model, self._present = executor.d_model, present
        self._seeing: Stages = {}
        self._began: np.ndarray | None = None
        self._charged: list[Stages] = []
        self._outcomes: tuple[Outcome | None, ...] = ()

    @property
    def has_begun(self) -> bool:
        """Whether stage 1 has chosen."""
        return self._began is not None

    def look(self) -> Features:
        """What stage 1 sees; the time for it is charged to every episode.

        Raises:
            ValueError: the sample is unusable; names it.
        """
        features, self._seeing = self.session.features()
        return features

    def begin(
        self,
        choices_G2: np.ndarray,
        budget_token_D: np.ndarray,
        controller: Sequence[Stages] = (),
    ) -> np.ndarray:
        """Takes stage 1's choices and runs to the insertion positions.

        Args:
            choices_G2: indices of stage 1's heads.
            budget_token_D: float32, enters block 0 after the text.
            controller: stage 1's own time in each episode, if it is to be charged.

        Returns:
            Latency tokens, float32 [G, D], zeros where the choice is invalid.
        """
        mask = stage1_mask()
        valid_G = np.array([is_allowed(choice, mask) for choice in choices_G2])
        self._began = np.where(valid_G[:, None], choices_G2, -1)
        self._charged = _joined([self._seeing] * len(valid_G), controller)
        tokens_GD = np.zeros((len(valid_G), self._d_model), np.float32)
        if valid_G.any():
            choices = [chosen_values(STAGE1_HEADS, choice) for choice in choices_G2[valid_G]]
            tokens_GD[valid_G] = self.session.begin(choices, budget_token_D)
        return tokens_GD

    @property
    def positions_G(self) -> np.ndarray:
        """Insertion position of each episode that runs, 0 of the others."""
        assert self._began is not None, "stage 1 has not chosen yet"
        return self._began[:, 1] + 1

    @property
    def running_G(self) -> np.ndarray:
        """Which episodes still run after stage 1."""
        return self.positions_G > 0

    def finish(
        self,
        choices_G2: np.ndarray,
        controller: Sequence[Stages] = (),
    ) -> tuple[Outcome | None, ...]:
        """Takes stage 2's choices and runs to the answers; None for an invalid choice.

        Args:
            choices_G2: indices of stage 2's heads.
            controller: stage 2's own time in each episode, if it is to be charged.
        """
        running_G = self.running_G
        chosen = [
            chosen_values(STAGE2_HEADS, choice)
            if is_allowed(choice, stage2_mask(position))
            else None
            for position, choice in zip(
                self.positions_G[running_G], choices_G2[running_G], strict=True
            )
        ]
        executions = iter(self.session.finish(chosen, self.device_budget_ms))
        self._outcomes = tuple(
            Outcome.of(execution, charged, self._present)
            if is_running and (execution := next(executions)) is not None
            else None
            for is_running, charged in zip(
                running_G, _joined(self._charged, controller), strict=True
            )
        )
        return self._outcomes

    def is_feasible(self) -> bool:
        """Whether the cheapest configuration would have met the budget on this sample.

        It would if any episode did. Otherwise it runs, and its latency decides.
        """
        latencies_ms = [outcome.latency_ms for outcome in self._outcomes if outcome is not None]
        if not latencies_ms or not is_violation(latencies_ms, self.terms.budget_ms).all():
            return True
        return not is_violation(self.session.cheapest_latency_ms(), self.device_budget_ms)


def _joined(before: Sequence[Stages], added: Sequence[Stages]) -> list[Stages]:
    """The controller's stages of each episode; nothing is added where nothing was measured."""
    return [{**old, **new} for old, new in zip(before, added or [{}] * len(before), strict=True)]

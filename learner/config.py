"""Settings of the learner."""

from __future__ import annotations

from dataclasses import dataclass, field

from envs.checks import check_within
from learner.advantages import ADVANTAGE_FORMS, AdvantageForm
from learner.losses import EntropySchedule, LossConfig
from learner.replay import ReplayConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """Optimizer, loss, and how many failed updates to tolerate.

    Attributes:
        learning_rate: Adam's learning rate for stage 2 at the first update.
        final_lr_ratio: every learning rate falls linearly to this share of its first value and
            stays there.
        lr_steps: number of updates over which the learning rates fall.
        weight_decay: Adam's L2 penalty.
        grad_clip: maximum norm of the whole gradient.
        stage1_lr_ratio: learning rate of stage 1, as a multiple of `learning_rate`.
        budget_lr_ratio: learning rate of the budget encoder, as a multiple of `learning_rate`.
            Both stages read its token, and small changes of its weights add up to large changes of
            the token, so a trained one should change slowly.
        advantage: leave_one_out, mean_only or group_standardised; the last one cancels most of
            lambda's effect (see `learner.advantages.combine`).
        epochs: number of passes over each batch.
        max_nonfinite_updates: number of consecutive updates that may be skipped because of a
            non-finite loss or gradient; one more ends the run.
        loss: clipping, importance cap, KL.
        entropy: schedule of the entropy bonus, in replay as well.
        replay: learns from remembered episodes too, by a model of their outcomes; None learns from
            each step's groups alone.
    """

    learning_rate: float = 1e-4
    final_lr_ratio: float = 1.0
    lr_steps: int = 1000
    weight_decay: float = 1e-5
    grad_clip: float = 1.0
    stage1_lr_ratio: float = 1.0
    budget_lr_ratio: float = 1.0
    advantage: AdvantageForm = "leave_one_out"
    epochs: int = 1
    max_nonfinite_updates: int = 3
    loss: LossConfig = field(default_factory=LossConfig)
    entropy: EntropySchedule = field(default_factory=EntropySchedule)
    replay: ReplayConfig | None = None

    def __post_init__(self) -> None:
        rates = ("learning_rate", "stage1_lr_ratio", "budget_lr_ratio")
        check_within(self, *rates, "grad_clip", low=0, above=True)
        if not 0 <= self.final_lr_ratio <= 1 or self.lr_steps < 1:
            raise ValueError(
                f"final_lr_ratio {self.final_lr_ratio}, lr_steps {self.lr_steps}: give a share "
                "within 0..1 and at least one step"
            )
        check_within(self, "weight_decay", low=0)
        if self.epochs < 1 or self.max_nonfinite_updates < 0:
            raise ValueError(
                f"epochs {self.epochs}, max_nonfinite_updates {self.max_nonfinite_updates}: give "
                "at least 1 and 0"
            )
        if self.replay is not None and self.epochs != 1:
            raise ValueError(
                f"epochs is {self.epochs}: with replay leave it at 1 and set replay.policy_updates"
            )
        if self.advantage not in ADVANTAGE_FORMS:
            raise ValueError(
                f"unknown advantage {self.advantage!r}: use one of {', '.join(ADVANTAGE_FORMS)}"
            )

    def lr_scale(self, step: int) -> float:
        """Factor on all learning rates at an update, counted from 0."""
        share = min(step / self.lr_steps, 1.0)
        return 1 - share * (1 - self.final_lr_ratio)

"""Settings of the learner; a command line reads them without PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from envs.checks import check_within
from learner.advantages import ADVANTAGE_FORMS, AdvantageForm


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropySchedule:
    """Coefficient of the entropy bonus: linear from `start` to `end` over `steps` updates."""

    start: float = 0.02
    end: float = 0.002
    steps: int = 1000

    def __post_init__(self) -> None:
        check_within(self, "start", "end", low=0)
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: give at least one step")

    def coefficient(self, step: int) -> float:
        """Returns the coefficient of an update, counted from 0."""
        share = min(max(step / self.steps, 0.0), 1.0)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights and limits of the loss terms.

    Attributes:
        clip_eps_low: the probability ratio is clipped below 1 - clip_eps_low.
        clip_eps_high: the probability ratio is clipped above 1 + clip_eps_high (clip-higher, DAPO,
            Yu et al. 2025).
        importance_cap: upper limit of the importance weight of an episode from a stale batch.
        kl_coef: weight of the KL divergence to the initial controller; 0 for none.
        entropy_head_weights: weight of each head's entropy in the bonus.
    """

    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28
    importance_cap: float = 2.0
    kl_coef: float = 0.0
    entropy_head_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not (0 < self.clip_eps_low < 1 and self.clip_eps_high > 0):
            raise ValueError(
                f"clip range {self.clip_eps_low}, {self.clip_eps_high}: give clip_eps_low in "
                "(0, 1) and a positive clip_eps_high"
            )
        check_within(self, "clip_eps_high", "kl_coef", low=0)
        check_within(self, "importance_cap", low=1)
        if not all(math.isfinite(w) and w >= 0 for w in self.entropy_head_weights):
            raise ValueError(
                f"entropy_head_weights are {self.entropy_head_weights}: give four of at least 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeModelConfig:
    """Size and fit of the model.

    Attributes:
        hidden_dim: width of its bottleneck. It is narrow, so that samples are compared by the few
            directions in which their needs differ.
        input_dropout: share of inputs that are dropped in the fit.
        dropout: share of the bottleneck that is dropped in the fit.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
    """

    hidden_dim: int = 16
    input_dropout: float = 0.6
    dropout: float = 0.3
    learning_rate: float = 5e-3
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        check_within(self, "hidden_dim", low=1)
        check_within(self, "input_dropout", "dropout", low=0, high=0.9)
        check_within(self, "learning_rate", low=0, above=True)
        check_within(self, "weight_decay", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """How much is remembered, and how often it is learned from.

    Attributes:
        capacity: number of groups that are remembered; they are part of every checkpoint.
        warm_up: number of groups before the policy follows the model.
        model_updates: updates of the outcome model per step.
        profile_updates: updates of the outcome model on a profile, before the first step.
        policy_updates: updates of the policy per step.
        batch_size: groups of one update, drawn with replacement.
        residual_weight: weight of the measured residual against the model's expectation: at 0 the
            policy trusts the model alone, at 1 its errors are corrected in full, at the price of
            the noise of a step's few episodes (see `learner.expected_groups.residuals`).
        model: size and fit of the outcome model.
    """

    capacity: int = 4096
    warm_up: int = 64
    model_updates: int = 8
    profile_updates: int = 600
    policy_updates: int = 10
    batch_size: int = 256
    residual_weight: float = 0.1
    model: OutcomeModelConfig = field(default_factory=OutcomeModelConfig)

    def __post_init__(self) -> None:
        names = ("capacity", "warm_up", "model_updates", "policy_updates", "batch_size")
        check_within(self, *names, "profile_updates", low=1)
        check_within(self, "residual_weight", low=0)


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

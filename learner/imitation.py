"""Warm start: before GRPO, both stages are trained on known gains of all configurations.

Because the gains are known, no sampling is needed: each stage ascends its exact expected gain.

Shapes: B examples (a sample and a budget each), D d_model, I length of the image feature, A = 3
tiers, P = 5 positions, K = 5 top_ks, N = 5 num_blocks, R = B STAGE1_CHOICES.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.checks import check_within
from envs.spec import HEAD_SIZES
from learner.objective import Gains, soft_value
from policy.controller import Controller
from policy.stage1 import Stage1Logits

STAGE1_CHOICES = 2
"""Number of (tier, position) pairs per example on which stage 2 is trained in one step."""

STRAY_SHARE = 0.3
"""Share of these pairs drawn uniformly instead of from stage 1: stage 2 must also handle pairs that
stage 1 chooses by mistake."""

COOLING_SHARE = 0.7
"""Share of the steps after which the temperature stays at its last value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartConfig:
    """Optimizer settings of the warm start.

    Attributes:
        steps: number of optimizer steps.
        batch_size: examples per step, drawn with replacement.
        learning_rate: Adam's initial learning rate; it falls linearly to zero.
        first_temperature: initial weight of the entropy relative to the gain; high, so that no
            early choice is final.
        last_temperature: final weight of the entropy; in between it falls geometrically.
        grad_clip: maximum norm of the gradient.
        seed: seed of the draws.
    """

    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 2e-3
    first_temperature: float = 0.2
    last_temperature: float = 0.01
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_within(self, "steps", "batch_size", low=1)
        check_within(self, "seed", low=0)
        positive = ("learning_rate", "first_temperature", "last_temperature", "grad_clip")
        check_within(self, *positive, low=0, above=True)

    def temperature(self, step: int) -> float:
        """The temperature of a step, counted from 0."""
        share = min(step / (COOLING_SHARE * self.steps), 1.0)
        return self.first_temperature * (self.last_temperature / self.first_temperature) ** share


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WarmStartExamples:
    """The controller's inputs, and the gain of every configuration.

    Attributes:
        language_feature_BD: float32.
        image_feature_BI: float32; I = 0 if stage 1 does not see the image.
        budgets_ms_B: float64, ms.
        prices_B: float64, prices of time.
        latency_token_BAPD: float32, the latency token at every tier and position, with the
            controller's current budget encoder.
        gains_BAPKN: float32; -inf for masked or unknown configurations.
    """

    language_feature_BD: np.ndarray
    image_feature_BI: np.ndarray
    budgets_ms_B: np.ndarray
    prices_B: np.ndarray
    latency_token_BAPD: np.ndarray
    gains_BAPKN: np.ndarray

    def __post_init__(self) -> None:
        count, width = len(self.budgets_ms_B), self.language_feature_BD.shape[-1]
        shapes = (
            self.language_feature_BD.shape,
            self.latency_token_BAPD.shape,
            self.gains_BAPKN.shape,
        )
        expected = ((count, width), (count, *HEAD_SIZES[:2], width), (count, *HEAD_SIZES))
        if count == 0 or shapes != expected:
            raise ValueError(
                f"{count} budgets with features, latency tokens and gains of shapes {shapes}: give "
                f"[B, D], [B, 3, 5, D] and [B, {', '.join(map(str, HEAD_SIZES))}] for B budgets, "
                "at least one"
            )
        if not np.isfinite(self.gains_BAPKN).reshape(count, -1).any(1).all():
            raise ValueError("an example has no configuration of finite gain: leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartRecord:
    """Regret: mean gain lost by the most likely choices against the best ones."""

    regret_before: float
    regret_after: float


def warm_start(
    controller: Controller, examples: WarmStartExamples, config: WarmStartConfig
) -> WarmStartRecord:
    """Trains both stages in place, by gradient ascent on expected gain plus entropy.

    The budget encoder keeps its weights, because the examples' latency tokens depend on them.
    """
    data = _Tensors(controller, examples)
    before = data.regret(controller)
    weights = [*controller.stage1.parameters(), *controller.stage2.parameters()]
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate)
    rng = torch.Generator().manual_seed(config.seed)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / config.steps)
        rows_B = torch.randint(len(data.budget_token_BD), (config.batch_size,), generator=rng)
        temperature = config.temperature(step)
        loss = -data.objective(controller, rows_B, temperature, rng) / temperature
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.grad_clip)
        optimizer.step()
    return WarmStartRecord(regret_before=before, regret_after=data.regret(controller))


class _Tensors:
    """The examples on the controller's device, with their budget tokens, which are constant."""

    def __init__(self, controller: Controller, examples: WarmStartExamples):
        like = next(controller.parameters())
        self.language_feature_BD = torch.from_numpy(examples.language_feature_BD).to(like)
        self.image_feature_BI = torch.from_numpy(examples.image_feature_BI).to(like)
        self.latency_token_BAPD = torch.from_numpy(examples.latency_token_BAPD).to(like)
        gains_BAPKN = torch.from_numpy(examples.gains_BAPKN).to(like)
        self.gains = Gains.of(gains_BAPKN)
        with torch.no_grad():
            self.budget_token_BD = controller.budget_tokens(
                torch.from_numpy(examples.budgets_ms_B), torch.from_numpy(examples.prices_B)
            )

    def objective(
        self, controller: Controller, rows_B: Tensor, temperature: float, rng: torch.Generator
    ) -> Tensor:
        """The sum of stage 1's soft value, given the best choices of stage 2, and stage 2's."""
        rows_B = rows_B.to(self.budget_token_BD.device)
        stage1 = controller.stage1_logits(
            self.language_feature_BD[rows_B],
            self.budget_token_BD[rows_B],
            self.image_feature_BI[rows_B],
        )
        value_B = soft_value(stage1, self.gains.relative_BAP[rows_B], temperature)
        tier_R, position_R = _draw(stage1, rng)
        rows_R = rows_B.repeat_interleave(STAGE1_CHOICES)
        stage2 = controller.stage2_logits(
            self.latency_token_BAPD[rows_R, tier_R, position_R], position_R
        )
        value_R = soft_value(
            stage2, self.gains.relative_BAPKN[rows_R, tier_R, position_R], temperature
        )
        return value_B.mean() + value_R.mean()

    @torch.no_grad()
    def regret(self, controller: Controller) -> float:
        """Mean gain lost by the most likely choices."""
        stage1 = controller.stage1_logits(
            self.language_feature_BD, self.budget_token_BD, self.image_feature_BI
        )
        rows_B = torch.arange(len(self.budget_token_BD), device=self.budget_token_BD.device)
        tier_B, position_B = (logits.argmax(-1) for logits in stage1)
        tokens_BD = self.latency_token_BAPD[rows_B, tier_B, position_B]
        stage2 = controller.stage2_logits(tokens_BD, position_B)
        chosen_B = [logits.argmax(-1) for logits in stage2]
        return -self.gains.relative_BAPKN[rows_B, tier_B, position_B, *chosen_B].mean().item()


@torch.no_grad()
def _draw(stage1: Stage1Logits, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tiers and positions [R] on which stage 2 is trained, as choice indices."""
    tier_BA, position_BP = (logits.softmax(-1) for logits in stage1)
    chance_BC = (tier_BA[:, :, None] * position_BP[:, None]).flatten(1)
    chance_BC = (1 - STRAY_SHARE) * chance_BC + STRAY_SHARE / chance_BC.shape[1]
    choice_BR = chance_BC.cpu().multinomial(STAGE1_CHOICES, replacement=True, generator=rng)
    choice_R = choice_BR.flatten().to(tier_BA.device)
    return choice_R // HEAD_SIZES[1], choice_R % HEAD_SIZES[1]

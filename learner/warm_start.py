"""Warm start: both stages imitate given configurations before GRPO begins.

Shapes: B examples, D d_model, 4 heads in the order tier, position, top_k, num_blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from policy.controller import HEADS, Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartConfig:
    """How long and how fast to imitate.

    Attributes:
        steps: optimizer steps.
        batch_size: examples of each step, drawn with replacement.
        learning_rate: Adam's.
        entropy_coef: weight of an entropy bonus that leaves GRPO something to explore.
        grad_clip: largest norm of the gradient.
        seed: of the draws.
    """

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 1e-3
    entropy_coef: float = 0.05
    grad_clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WarmStartExamples:
    """Target configurations, for instance the best feasible ones of a profile.

    Attributes:
        language_feature_BD: float32.
        budgets_ms_B: float64.
        latency_token_BD: float32, taken at the target's tier and position with the controller's
            present budget encoder.
        actions_B4: int64 choice indices of the targets.
        is_stage1_target_B: bool; where it is false, tier and position are only what stage 2 has to
            answer for.
    """

    language_feature_BD: np.ndarray
    budgets_ms_B: np.ndarray
    latency_token_BD: np.ndarray
    actions_B4: np.ndarray
    is_stage1_target_B: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.budgets_ms_B)
        width = self.language_feature_BD.shape[-1]
        shapes = (
            self.language_feature_BD.shape,
            self.latency_token_BD.shape,
            self.actions_B4.shape,
            self.is_stage1_target_B.shape,
        )
        if count == 0 or shapes != ((count, width), (count, width), (count, 4), (count,)):
            raise ValueError(
                f"{count} budgets with features, latency tokens, actions and stage 1 targets of "
                f"shapes {shapes}: give [B, D], [B, D], [B, 4] and [B] for B budgets, at least one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStartRecord:
    """Cross-entropy (nats an episode) and share of targets hit by argmax, over all examples."""

    cross_entropy_before: float
    cross_entropy_after: float
    accuracy_by_head: dict[str, float]


def warm_start(
    controller: Controller, examples: WarmStartExamples, config: WarmStartConfig
) -> WarmStartRecord:
    """Trains the two stages by cross-entropy on the targets, in place.

    The budget encoder keeps its weights: with them, the latency tokens of the examples stay those
    that the frozen model gives.
    """
    data = _Tensors(controller, examples)
    before, _ = data.evaluate(controller)
    weights = [*controller.stage1.parameters(), *controller.stage2.parameters()]
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate)
    rng = torch.Generator().manual_seed(config.seed)
    for _ in range(config.steps):
        rows_B = torch.randint(len(data.actions_B4), (config.batch_size,), generator=rng)
        evaluation = controller.evaluate(*data.rows(rows_B))
        cross_entropy = -(data.is_target_B4[rows_B] * evaluation.log_probs_B4).sum(-1).mean()
        loss = cross_entropy - config.entropy_coef * evaluation.entropies_B4.sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.grad_clip)
        optimizer.step()
    after, accuracy_by_head = data.evaluate(controller)
    return WarmStartRecord(
        cross_entropy_before=before,
        cross_entropy_after=after,
        accuracy_by_head=accuracy_by_head,
    )


class _Tensors:
    """The examples on the controller's device, with their budget tokens, which stay fixed."""

    def __init__(self, controller: Controller, examples: WarmStartExamples):
        like = next(controller.parameters())
        self.language_feature_BD = torch.from_numpy(examples.language_feature_BD).to(like)
        self.latency_token_BD = torch.from_numpy(examples.latency_token_BD).to(like)
        self.actions_B4 = torch.from_numpy(examples.actions_B4).to(like.device)
        self.is_target_B4 = torch.ones_like(self.actions_B4, dtype=like.dtype)
        self.is_target_B4[:, :2] = torch.from_numpy(examples.is_stage1_target_B)[:, None]
        with torch.no_grad():
            self.budget_token_BD = controller.budget_tokens(torch.from_numpy(examples.budgets_ms_B))

    def rows(self, rows_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The arguments of `Controller.evaluate` for some examples."""
        rows_B = rows_B.to(self.actions_B4.device)
        return (
            self.language_feature_BD[rows_B],
            self.budget_token_BD[rows_B],
            self.latency_token_BD[rows_B],
            self.actions_B4[rows_B],
        )

    @torch.no_grad()
    def evaluate(self, controller: Controller) -> tuple[float, dict[str, float]]:
        """Mean cross-entropy and argmax accuracy by head; the target's position is given."""
        features = (self.language_feature_BD, self.budget_token_BD, self.latency_token_BD)
        distributions = controller.log_distributions(*features, self.actions_B4[:, 1])
        log_probs_B4 = controller.evaluate(*features, self.actions_B4).log_probs_B4
        accuracy_by_head = {}
        for head, name in enumerate(HEADS):
            hits_B = distributions[head].argmax(-1) == self.actions_B4[:, head]
            accuracy_by_head[name] = hits_B[self.is_target_B4[:, head] > 0].double().mean().item()
        return -(self.is_target_B4 * log_probs_B4).sum(-1).mean().item(), accuracy_by_head

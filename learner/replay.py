"""Replay: after each measured update, many more from remembered episodes and an outcome model.

A group is measured once. Its scores and latencies keep teaching the outcome model, and its inputs
keep teaching the policy, which ascends the model's expected reward over all configurations.

Shapes: B drawn groups, G episodes of a group, A = 3 tiers, P = 5 positions, K = 5 top_ks, N = 5
num_blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from envs.checks import check_within
from learner.experience import Episodes, Experience
from learner.outcome_model import OutcomeModel, OutcomeModelConfig
from learner.soft_value import shortfall, soft_value
from policy.controller import Controller
from rollout.group_rollout import GroupRollout

ViolationCost = Callable[[ArrayLike], NDArray[np.float64]]
"""Lambda at each budget in ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """How much is remembered, and how often it is learned from.

    Attributes:
        capacity: number of groups that are remembered; they are part of every checkpoint.
        warm_up: number of groups before the policy follows the model.
        model_updates: updates of the outcome model per step.
        policy_updates: updates of both stages per step.
        batch_size: groups of one update, drawn with replacement.
        learning_rate: Adam's for both stages; it falls as the learner's does. These updates have an
            optimizer of their own, because their gradient has far less noise than that of a
            measured batch.
        model: size and fit of the outcome model.
    """

    capacity: int = 4096
    warm_up: int = 64
    model_updates: int = 8
    policy_updates: int = 10
    batch_size: int = 256
    learning_rate: float = 5e-3
    model: OutcomeModelConfig = field(default_factory=OutcomeModelConfig)

    def __post_init__(self) -> None:
        names = ("capacity", "warm_up", "model_updates", "policy_updates", "batch_size")
        check_within(self, *names, low=1)
        check_within(self, "learning_rate", low=0, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRecord:
    """Results of one step's replay, for the logs.

    Attributes:
        num_groups: number of groups remembered.
        model_loss: mean loss of the outcome model.
        latency_spread: spread of log latencies around its predictions, on groups that it had not
            learned from.
        regret: mean expected reward that the policy loses by the model: by stage 1's choices, each
            followed by the best ones of stage 2, and by stage 2's after the remembered prefixes.
    """

    num_groups: int
    model_loss: float
    latency_spread: float
    regret: float


class Replay:
    """Remembers groups, fits the outcome model and improves the policy by it.

    Args:
        controller: the policy; both stages are improved. The budget encoder keeps its weights,
            because remembered latency tokens depend on them. They are those that the acting policy
            saw, at its own budget, tier and position.
        config: see ReplayConfig.
        seed: of the outcome model's initial weights.
    """

    def __init__(self, controller: Controller, config: ReplayConfig, seed: int = 0) -> None:
        self.controller, self.config = controller, config
        self.experience = Experience(config.capacity)
        widths = controller.config.d_model, controller.config.image_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = OutcomeModel(*widths, config.model)
        self.model.to(next(controller.parameters()).device)
        self.model_optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.model.learning_rate,
            weight_decay=config.model.weight_decay,
        )
        self.stages = [*controller.stage1.parameters(), *controller.stage2.parameters()]
        self.optimizer = torch.optim.Adam(self.stages, lr=config.learning_rate)

    def learn(
        self,
        groups: Sequence[GroupRollout],
        violation_cost: ViolationCost,
        *,
        temperature: float,
        lr_scale: float,
        grad_clip: float,
        seed: int,
    ) -> ReplayRecord:
        """Takes in a step's groups, then updates the outcome model and the policy.

        Args:
            groups: of one size.
            violation_cost: lambda at each budget.
            temperature: weight of the entropy relative to the reward.
            lr_scale: factor on the policy's learning rate.
            grad_clip: maximum norm of the policy's gradient.
            seed: of the draws; the same seed, state and groups lead to the same weights.
        """
        rng = torch.Generator().manual_seed(seed)
        self.optimizer.param_groups[0]["lr"] = lr_scale * self.config.learning_rate
        like = next(self.controller.parameters())
        self.model.observe(self.experience.add(groups).to(like))
        with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
            torch.manual_seed(seed)
            losses = [
                self._fit(self.experience.draw(self.config.batch_size, rng).to(like))
                for _ in range(self.config.model_updates)
            ]
        regrets = [0.0]
        if len(self.experience) >= self.config.warm_up:
            regrets = [
                self._improve(
                    self.experience.draw(self.config.batch_size, rng).to(like),
                    violation_cost,
                    temperature,
                    grad_clip,
                )
                for _ in range(self.config.policy_updates)
            ]
        return ReplayRecord(
            num_groups=len(self.experience),
            model_loss=float(np.mean(losses)),
            latency_spread=float(self.model.spread),
            regret=float(np.mean(regrets)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact resume needs."""
        return {
            "experience": self.experience.state_dict(),
            "model": self.model.state_dict(),
            "model_optimizer": self.model_optimizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a saved state."""
        self.experience.load_state_dict(state["experience"])
        self.model.load_state_dict(state["model"])
        self.model_optimizer.load_state_dict(state["model_optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _fit(self, episodes: Episodes) -> float:
        self.model.train()
        loss = self.model.loss(episodes)
        self.model_optimizer.zero_grad()
        loss.backward()
        self.model_optimizer.step()
        return loss.item()

    def _improve(
        self,
        episodes: Episodes,
        violation_cost: ViolationCost,
        temperature: float,
        grad_clip: float,
    ) -> float:
        """One update of both stages; returns the policy's regret before it."""
        costs_B = torch.from_numpy(violation_cost(episodes.budgets_ms_M.cpu().numpy()))
        costs_B = costs_B.to(episodes.budgets_ms_M.device)
        behind_BAPKN = shortfall(self.model.gains(episodes, costs_B))
        with torch.no_grad():
            budget_token_BD = self.controller.budget_tokens(episodes.budgets_ms_M)
        stage1 = self.controller.stage1_logits(
            episodes.language_feature_MD, budget_token_BD, episodes.image_feature_MI
        )
        value_B = soft_value(*stage1, behind_BAPKN.amax((3, 4)), temperature)
        actions_BG4 = episodes.actions_MG4
        rows_BG = torch.arange(len(episodes), device=actions_BG4.device)[:, None].expand(
            actions_BG4.shape[:2]
        )
        tier_BG, position_BG, *_ = actions_BG4.unbind(-1)
        stage2 = self.controller.stage2_logits(
            episodes.latency_token_MGD.flatten(0, 1), position_BG.flatten()
        )
        after_BGKN = behind_BAPKN[rows_BG, tier_BG, position_BG]
        value_R = soft_value(*stage2, after_BGKN.flatten(0, 1), temperature)
        loss = -(value_B.mean() + value_R.mean())
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.stages, grad_clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        with torch.no_grad():
            lost_B = -soft_value(*stage1, behind_BAPKN.amax((3, 4)), 0.0)
            lost_R = after_BGKN.amax((2, 3)).flatten() - soft_value(
                *stage2, after_BGKN.flatten(0, 1), 0.0
            )
        return float(lost_B.mean() + lost_R.mean())

"""Replay: the policy learns from remembered episodes too, by an outcome model.

A group is measured once. Its scores and latencies keep teaching the outcome model, and its inputs
keep teaching the policy, which ascends the model's expected reward over all configurations.

Shapes: B drawn groups, G episodes of a group, A = 3 tiers, P = 5 positions, K = 5 top_ks, N = 5
num_blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.reward import BudgetReward
from learner.archive import Archive, name_of, packed, unpacked
from learner.config import ReplayConfig
from learner.objective import Gains, regret_of_stages, value_of_stages
from learner.outcome_model import OutcomeModel
from learner.replay_buffer import Episodes, ReplayBuffer, TaskNames
from policy.controller import Controller
from policy.stage1 import Stage1Logits
from policy.stage2 import Stage2Logits
from rollout.group_rollout import GroupRollout

PROFILED_BATCH = 64
"""Profiled samples of one update; each has the outcomes of all its configurations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRecord:
    """Results of one step's replay, for the logs.

    Attributes:
        num_groups: number of groups remembered.
        model_loss: mean loss of the outcome model.
        latency_spread: spread of log latencies around its predictions, on groups that it had not
            learned from.
        regret: expected reward that the policy loses by the model before the step's first update:
            by stage 1's choices, each followed by the best ones of stage 2, and by stage 2's after
            the remembered prefixes.
        residual: mean absolute difference between measured and expected rewards.
        measured_norm: norm of the stages' gradient from the measured groups, in the first update.
        remembered_norm: the same from remembered groups.
        measured_share: share of the former in the sum of both.
    """

    num_groups: int
    model_loss: float
    latency_spread: float
    regret: float
    residual: float
    measured_norm: float
    remembered_norm: float
    measured_share: float


class Replay:
    """Remembers groups, fits the outcome model and improves the policy by it.

    Args:
        controller: the policy. Remembered latency tokens are those that the acting policy saw, at
            its own budget, tier and position.
        config: see ReplayConfig.
        seed: of the outcome model's initial weights.
    """

    def __init__(self, controller: Controller, config: ReplayConfig, seed: int = 0) -> None:
        self.controller, self.config = controller, config
        self.buffer = ReplayBuffer(config.capacity)
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
        self.tasks = TaskNames()
        self.profiled: Episodes | None = None
        self._profile = b""
        self.model_loss = 0.0
        self._rng = torch.Generator()

    def take_in(self, groups: Sequence[GroupRollout], seed: int) -> None:
        """Remembers a step's groups and fits the outcome model to all that is remembered.

        Args:
            groups: of one size; those with a value that is not finite are left out.
            seed: of the draws; the same seed, state and groups lead to the same weights.
        """
        self._rng = torch.Generator().manual_seed(seed)
        like = next(self.controller.parameters())
        new = Episodes.of(groups, self.tasks)
        new = new.rows(new.is_finite_M)  # one that is not would stay, and spoil every later step
        if not len(new):
            return
        self.buffer.add(new)
        self.model.observe(new.to(like))
        with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
            torch.manual_seed(seed)
            losses = [self._fit() for _ in range(self.config.model_updates)]
        self.model_loss = float(np.mean(losses))

    def take_in_profile(self, profiled: Episodes, seed: int) -> None:
        """Fits the outcome model to a profile, which stays part of what it is fitted to.

        Each of its samples counts as one group, so that a run's own groups correct the profile as
        they become more.

        Args:
            profiled: samples with all their configurations, in calibrated ms.
            seed: of the draws.
        """
        like = next(self.controller.parameters())
        self._rng = torch.Generator().manual_seed(seed)
        self.profiled, self._profile = profiled, packed(profiled.tensors())
        self.model.observe(profiled.to(like))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(self.config.profile_updates):
                self.model_loss = self._fit()
        self.model.spread.copy_(self.model.spread_on(profiled.to(like)))

    @property
    def is_ready(self) -> bool:
        """Whether enough is known for the policy to follow the model."""
        return len(self.buffer) + self._num_profiled >= self.config.warm_up

    @property
    def _num_profiled(self) -> int:
        return 0 if self.profiled is None else len(self.profiled)

    def gains(self, episodes: Episodes, worth: BudgetReward) -> Gains:
        """What the model expects of every configuration on some samples."""
        return Gains.of(self.model.gains(episodes, worth))

    def backward(self, worth: BudgetReward, temperature: float) -> float:
        """Adds the gradient of both stages on remembered episodes, drawn anew at each call.

        The budget encoder gets none, because remembered latency tokens depend on its weights as
        they were.

        Returns:
            The policy's regret by the model: see `regret_of_stages`.
        """
        if not len(self.buffer):
            return 0.0
        like = next(self.controller.parameters())
        episodes = self.buffer.draw(self.config.batch_size, self._rng).to(like)
        gains = self.gains(episodes, worth)
        with torch.no_grad():
            budget_token_BD = self.controller.budget_tokens(
                episodes.budgets_ms_M, episodes.prices_M
            )
        stages = logits_of(
            self.controller, episodes, budget_token_BD, episodes.latency_token_MGD.flatten(0, 1)
        )
        prefixes = prefixes_of(episodes)
        (-value_of_stages(*stages, gains, prefixes, temperature)).backward()
        return regret_of_stages(*stages, gains, prefixes)

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact resume needs besides `archive`, whose contents it names."""
        return {
            "groups": self.buffer.names,
            "profile": name_of(self._profile) if self._profile else "",
            "tasks": self.tasks.names,
            "model": self.model.state_dict(),
            "model_optimizer": self.model_optimizer.state_dict(),
        }

    def archive(self) -> dict[str, bytes]:
        """Remembered groups and the profile."""
        profile = {name_of(self._profile): self._profile} if self._profile else {}
        return {**profile, **self.buffer.archive()}

    def load_state_dict(self, state: dict[str, Any], archive: Archive) -> None:
        """Takes over a saved state."""
        self.buffer.restore(state["groups"], archive)
        self._profile = archive[state["profile"]] if state["profile"] else b""
        self.profiled = Episodes(**unpacked(self._profile)) if self._profile else None
        self.tasks = TaskNames(state["tasks"])
        self.model.load_state_dict(state["model"])
        self.model_optimizer.load_state_dict(state["model_optimizer"])

    def _fit(self) -> float:
        """One update of the outcome model, on groups and profiled samples by their numbers."""
        self.model.train()
        like = next(self.controller.parameters())
        share = self._num_profiled / (self._num_profiled + len(self.buffer))
        loss = torch.zeros(())
        if len(self.buffer):
            drawn = self.buffer.draw(self.config.batch_size, self._rng)
            loss = (1 - share) * self.model.loss(drawn.to(like))
        if self.profiled is not None:
            rows_B = torch.randint(self._num_profiled, (PROFILED_BATCH,), generator=self._rng)
            loss = loss + share * self.model.loss(self.profiled.rows(rows_B).to(like))
        self.model_optimizer.zero_grad()
        loss.backward()
        self.model_optimizer.step()
        return loss.item()


def logits_of(
    controller: Controller, episodes: Episodes, budget_token_BD: Tensor, latency_token_RD: Tensor
) -> tuple[Stage1Logits, Stage2Logits]:
    """Logits of both stages on groups of episodes; R = B G."""
    stage1 = controller.stage1_logits(
        episodes.language_feature_MD, budget_token_BD, episodes.image_feature_MI
    )
    return stage1, controller.stage2_logits(latency_token_RD, prefixes_of(episodes)[2])


def prefixes_of(episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    """Row of the sample, tier and position of each episode, choice indices [B G]."""
    tier_R, position_R, *_ = episodes.actions_MG4.flatten(0, 1).unbind(-1)
    rows_B = torch.arange(len(episodes), device=tier_R.device)
    return rows_B.repeat_interleave(episodes.actions_MG4.shape[1]), tier_R, position_R

"""Runs controller and executor together: one group, from sample to rewards.

Training, evaluation and single answers (a group of one) all use this one composition.

Shapes: G members, D d_model, 4 heads (tier, position, top_k, num_blocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.latency_budget import LatencyBudgetVectorEnv
from envs.spec import Features, Sample
from policy.controller import Choice, Controller, choose
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import GroupExecutor, MolmoEGroupSession
from rollout.latency.hooks import Elapsed, Stages, in_ms

Member = torch.Generator | None
"""Generator that samples a member's choices; None takes the most likely ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """The choices of a group and their outcomes.

    Attributes:
        features: what stage 1 saw of the sample.
        actions: int64 [G, 4], choice indices.
        log_probs: float32 [G, 4], log-probabilities of the choices.
        latency_tokens: float32 [G, D].
        outcomes: final info of each member from the environment (`latency_ms`, `stages_ms`,
            `answer`, `score`, `knobs`, `feasible`, ...); latencies include the controller's time.
        session: the group on its executor, for the vector-Jacobian product.
    """

    features: Features
    actions: np.ndarray
    log_probs: np.ndarray
    latency_tokens: np.ndarray
    outcomes: tuple[dict[str, Any], ...]
    session: MolmoEGroupSession


class GroupRunner:
    """A frozen model and a controller, joined by one environment per group size."""

    def __init__(
        self, executor: MolmoEExecutor, controller: Controller, env_arguments: dict[str, Any]
    ) -> None:
        controller.check_compatible(d_model=executor.d_model, image_dim=executor.image_dim)
        self.executor = executor
        self.controller = controller
        self._arguments = env_arguments
        self._envs: dict[int, LatencyBudgetVectorEnv] = {}

    def env(self, group_size: int) -> LatencyBudgetVectorEnv:
        """The environment for groups of this size."""
        if group_size not in self._envs:
            self._envs[group_size] = LatencyBudgetVectorEnv(
                executor=GroupExecutor(self.executor, self.controller.config.sees_image),
                encode_budget=self._encode_budget,
                group_size=group_size,
                **self._arguments,
            )
        return self._envs[group_size]

    @torch.inference_mode()
    def run(
        self, sample: Sample, budget_ms: float, members: Sequence[Member] = (None,)
    ) -> GroupResult:
        """Runs one group of `len(members)` episodes: stage 1, prefix, stage 2, the rest, reward.

        Raises:
            DataError: the sample is unusable; names it.
            ValueError: the budget is unusable.
        """
        env = self.env(len(members))
        env.reset(options={"sample": sample, "budget_ms": budget_ms})
        session = env.session
        assert isinstance(session, MolmoEGroupSession)
        feature_times = self.executor.timeline.take()
        stage1, env.budget_token, times = self._decide_stage1(env.features, budget_ms, members)
        self._charge(env, [{**feature_times, **stages} for stages in times])
        actions1 = torch.cat([choice.indices_B2 for choice in stage1])
        actions1_G2 = actions1.cpu().numpy()
        observations, *_ = env.step(actions1_G2)
        tokens_GD = observations[:, : self.executor.d_model]
        stage2, times = self._decide_stage2(tokens_GD, actions1[:, 1], members)
        self._charge(env, times)
        actions2_G2 = torch.cat([choice.indices_B2 for choice in stage2]).cpu().numpy()
        info = env.step(actions2_G2)[-1]
        log_probs = [torch.cat([c.log_probs_B2 for c in stage]) for stage in (stage1, stage2)]
        return GroupResult(
            features=env.features,
            actions=np.concatenate([actions1_G2, actions2_G2], axis=1),
            log_probs=torch.cat(log_probs, dim=1).float().cpu().numpy(),
            latency_tokens=tokens_GD,
            outcomes=tuple(info["outcome"]),
            session=session,
        )

    def _charge(self, env: LatencyBudgetVectorEnv, times: list[Stages]) -> None:
        if self.executor.simulated is None:
            totals = [sum(stages.values(), Elapsed()) for stages in times]
            env.charge([in_ms(stages) for stages in times], [total.wall_ms for total in totals])

    def _encode_budget(self, budget_ms: float) -> np.ndarray:
        return self.controller.budget_tokens(torch.tensor([budget_ms]))[0].cpu().numpy()

    def _decide_stage1(
        self, features: Features, budget_ms: float, members: Sequence[Member]
    ) -> tuple[list[Choice], np.ndarray, list[Stages]]:
        """Computes the logits once; each member samples, and pays for, its own choice."""
        timeline, controller = self.executor.timeline, self.controller
        device = next(controller.parameters()).device
        timeline.take()
        with timeline.span("logits"):
            token_1D = controller.budget_tokens(torch.tensor([budget_ms], device=device))
            language_1D = torch.from_numpy(features.language).to(device)[None]
            image_1I = torch.from_numpy(features.image).to(device)[None]
            logits = controller.stage1_logits(language_1D, token_1D, image_1I)
        choices = []
        for index, generator in enumerate(members):
            with timeline.span(f"{index}"):
                choices.append(choose(logits, generator))
        times = timeline.take()
        stages = [{"stage1": times["logits"] + times[f"{i}"]} for i in range(len(members))]
        return choices, token_1D[0].cpu().numpy(), stages

    def _decide_stage2(
        self, tokens_GD: np.ndarray, positions_G: Tensor, members: Sequence[Member]
    ) -> tuple[list[Choice], list[Stages]]:
        """Each member decides by itself, as it would outside a group."""
        timeline, controller = self.executor.timeline, self.controller
        tokens = torch.from_numpy(tokens_GD).to(positions_G.device)
        timeline.take()
        choices = []
        for index, generator in enumerate(members):
            with timeline.span(f"{index}"):
                row = slice(index, index + 1)
                choices.append(
                    choose(controller.stage2_logits(tokens[row], positions_G[row]), generator)
                )
        times = timeline.take()
        return choices, [{"stage2": times[f"{i}"]} for i in range(len(members))]

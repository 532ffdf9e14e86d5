"""Runs controller and executor together: one group, from sample to answers.

Training, evaluation and single answers (a group of one) all use this one composition.

Shapes: G members, D d_model, 4 heads (tier, position, top_k, num_blocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from envs.calibration import PresentTime
from envs.episode import EpisodeGroup, Outcome
from envs.spec import Decoding, Features, Sample, Stages
from envs.terms import Terms
from policy.controller import Choice, Controller, choose
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import GroupExecutor

Member = torch.Generator | None
"""Generator that samples a member's choices; None takes the most likely ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedGroup:
    """The choices of a group and their outcomes.

    Attributes:
        group: the group on its executor.
        features: what stage 1 saw of the sample.
        budget_token: float32 [D], as it entered block 0.
        actions: int64 [G, 4], choice indices.
        log_probs: float32 [G, 4], log-probabilities of the choices.
        latency_tokens: float32 [G, D].
        outcomes: one of each member.
    """

    group: EpisodeGroup
    features: Features
    budget_token: np.ndarray
    actions: np.ndarray
    log_probs: np.ndarray
    latency_tokens: np.ndarray
    outcomes: tuple[Outcome, ...]


@torch.inference_mode()
def run_group(
    executor: MolmoEExecutor,
    controller: Controller,
    present: PresentTime,
    sample: Sample,
    terms: Terms,
    members: Sequence[Member],
    decoding: Decoding | None = None,
) -> FinishedGroup:
    """Runs one group of `len(members)` episodes: look, stage 1, prefix, stage 2, the rest.

    Args:
        executor: the frozen model.
        controller: on the model's device.
        present: present time of that device.
        sample: the question.
        terms: budget in calibrated ms, and price.
        members: how each of them decides.
        decoding: how answers are decoded.

    Raises:
        DataError: the sample is unusable; names it.
    """
    seen_by = GroupExecutor(executor, controller.config.sees_image, decoding)
    group = EpisodeGroup(seen_by, sample, terms, present)
    features = group.look()
    stage1, budget_token_D, times = _decide_stage1(executor, controller, features, terms, members)
    positions_G = torch.cat([choice.indices_B2 for choice in stage1])[:, 1]
    began_G2 = _indices(stage1)
    tokens_GD = group.begin(began_G2, budget_token_D, times)
    stage2, times = _decide_stage2(executor, controller, tokens_GD, positions_G, members)
    finished_G2 = _indices(stage2)
    outcomes = group.finish(finished_G2, times)
    log_probs = [torch.cat([c.log_probs_B2 for c in stage]) for stage in (stage1, stage2)]
    return FinishedGroup(
        group=group,
        features=features,
        budget_token=budget_token_D,
        actions=np.concatenate([began_G2, finished_G2], axis=1),
        log_probs=torch.cat(log_probs, dim=1).float().cpu().numpy(),
        latency_tokens=tokens_GD,
        outcomes=tuple(outcome for outcome in outcomes if outcome is not None),
    )


def _indices(choices: Sequence[Choice]) -> np.ndarray:
    return torch.cat([choice.indices_B2 for choice in choices]).cpu().numpy()


def _decide_stage1(
    executor: MolmoEExecutor,
    controller: Controller,
    features: Features,
    terms: Terms,
    members: Sequence[Member],
) -> tuple[list[Choice], np.ndarray, list[Stages]]:
    """Computes the logits once; each member samples, and pays for, its own choice."""
    timeline, device, choices = executor.timeline, executor.model.device, []
    with timeline.recorded() as times:
        with timeline.span("logits"):
            asked = torch.tensor([[terms.budget_ms], [terms.price]], device=device)
            token_1D = controller.budget_tokens(*asked)
            language_1D = torch.from_numpy(features.language).to(device)[None]
            image_1I = torch.from_numpy(features.image).to(device)[None]
            logits = controller.stage1_logits(language_1D, token_1D, image_1I)
        for index, generator in enumerate(members):
            with timeline.span(f"{index}"):
                choices.append(choose(logits, generator))
    stages = [
        executor.charged({"stage1": times["logits"] + times[f"{i}"]}) for i in range(len(members))
    ]
    return choices, token_1D[0].cpu().numpy(), stages


def _decide_stage2(
    executor: MolmoEExecutor,
    controller: Controller,
    tokens_GD: np.ndarray,
    positions_G: Tensor,
    members: Sequence[Member],
) -> tuple[list[Choice], list[Stages]]:
    """Each member decides by itself, as it would outside a group."""
    timeline, choices = executor.timeline, []
    tokens = torch.from_numpy(tokens_GD).to(positions_G.device).split(1)
    deciding = zip(members, tokens, positions_G.split(1), strict=True)
    with timeline.recorded() as times:
        for index, (generator, token_1D, position_1) in enumerate(deciding):
            with timeline.span(f"{index}"):
                logits = controller.stage2_logits(token_1D, position_1)
                choices.append(choose(logits, generator))
    return choices, [executor.charged({"stage2": times[f"{i}"]}) for i in range(len(members))]

"""Warm start: before GRPO, both stages imitate the best feasible configurations of a profile.

Shapes: S samples, K budgets of a sample, C configurations, B examples, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from envs.spec import BudgetSampler
from launch.baselines import priced_gains
from launch.calibration import sample_place
from learner.warm_start import WarmStartConfig, WarmStartExamples, WarmStartRecord, warm_start
from policy.controller import Controller
from rollout.latency.profile_table import ProfileTable
from rollout.worker import Prefixes, PrefixRequest

MAX_VIOLATION = 0.04
"""Largest share of violations that the imitated configurations may have at a budget: below the
target of 5 %, because they are chosen in hindsight."""

NUM_TARGETS = 200
"""Budgets at which the best configurations are looked for; those between take the next lower."""

BUDGETS_OF_A_SAMPLE = 4

IMITATION = WarmStartConfig(steps=1500, batch_size=256, learning_rate=2e-3, entropy_coef=0.01)
"""Long enough to follow targets that change within a few milliseconds of budget."""


class PrefixSource(Protocol):
    """A fleet, as far as a warm start needs it."""

    def prefixes(self, requests: Sequence[PrefixRequest]) -> list[Prefixes]:
        """Language features and latency tokens, in the order of the requests."""
        ...


def gains(
    table: ProfileTable,
    budgets_SK: np.ndarray,
    *,
    max_violation: float = MAX_VIOLATION,
    scatter: float = 0.0,
) -> np.ndarray:
    """What each configuration earns a sample's kind at its budgets, float64 [S, K, C].

    A kind that can hardly keep a budget takes up what share of violations is allowed, so that the
    others have to keep it more strictly.
    """
    grid_ms = np.linspace(budgets_SK.min(), budgets_SK.max(), NUM_TARGETS)
    gains_GTC = priced_gains(table, grid_ms, max_violation=max_violation, scatter=scatter)
    task_S = np.unique(table.tasks, return_inverse=True)[1]
    places_SK = np.searchsorted(grid_ms, budgets_SK, side="right") - 1
    return gains_GTC[places_SK, task_S[:, None]]


def detours(table: ProfileTable, gains_SKC: np.ndarray) -> np.ndarray:
    """Columns [S, K] of the best stage 2 behind a tier and a position that are not the best.

    Tier and position are those of two other budgets of the sample: what stage 1 may well choose
    by mistake, and stage 2 has to answer for.
    """
    tier_C = np.array([knobs.tier for knobs in table.configurations])
    position_C = np.array([knobs.position for knobs in table.configurations])
    best_SK = gains_SKC.argmax(-1)
    tier_SK, position_SK = tier_C[np.roll(best_SK, 1, 1)], position_C[np.roll(best_SK, 2, 1)]
    fits_SKC = (tier_C == tier_SK[..., None]) & (position_C == position_SK[..., None])
    fits_SKC |= ~fits_SKC.any(-1, keepdims=True)  # a profile of some configurations only
    return np.where(fits_SKC, gains_SKC, -np.inf).argmax(-1)


def examples_from_profile(
    controller: Controller,
    table: ProfileTable,
    budgets: BudgetSampler,
    source: PrefixSource,
    *,
    scatter: float = 0.0,
    num_budgets: int = BUDGETS_OF_A_SAMPLE,
    seed: int = 0,
) -> WarmStartExamples:
    """Each profiled sample at some budgets, with the configuration that its kind should get.

    The targets are chosen by (kind of question, budget): what one sample alone would need is
    not visible before it is answered. Each budget comes twice, with its target and with a detour.
    """
    rng = np.random.default_rng(seed)
    low_ms, high_ms = budgets.range.low_ms, budgets.range.high_ms
    budgets_SK = rng.uniform(low_ms, high_ms, (len(table.sample_ids), num_budgets))
    gains_SKC = gains(table, budgets_SK, scatter=scatter)
    columns_SK = np.concatenate([gains_SKC.argmax(-1), detours(table, gains_SKC)], axis=1)
    is_best_SK = np.arange(2 * num_budgets) < np.full_like(columns_SK, num_budgets)
    budgets_SK = np.tile(budgets_SK, 2)
    with torch.no_grad():
        tokens_BD = controller.budget_tokens(torch.from_numpy(budgets_SK.ravel())).cpu().numpy()
    tokens_SKD = tokens_BD.reshape(*budgets_SK.shape, -1)
    requests = []
    for row, sample_id in enumerate(table.sample_ids):
        split, index = sample_place(sample_id)
        chosen = [table.configurations[column] for column in columns_SK[row]]
        requests.append(
            PrefixRequest(
                split=split,
                index=index,
                choices=tuple((knobs.tier, knobs.position) for knobs in chosen),
                budget_tokens_KD=tokens_SKD[row],
            )
        )
    prefixes = source.prefixes(requests)
    return WarmStartExamples(
        language_feature_BD=np.repeat(
            [p.language_feature for p in prefixes], budgets_SK.shape[1], axis=0
        ),
        budgets_ms_B=budgets_SK.ravel(),
        latency_token_BD=np.concatenate([p.latency_tokens for p in prefixes]),
        actions_B4=np.array(
            [table.configurations[column].indices() for column in columns_SK.ravel()]
        ),
        is_stage1_target_B=is_best_SK.ravel(),
    )


def warm_start_from_profile(
    controller: Controller,
    table: ProfileTable,
    budgets: BudgetSampler,
    source: PrefixSource,
    config: WarmStartConfig | None = None,
    *,
    scatter: float = 0.0,
) -> WarmStartRecord:
    """Trains the controller's stages in place; raises ValueError for an unusable profile.

    The table's latencies are those of the run's devices, and `scatter` what they lack of these
    devices' noise (`launch.calibration.calibrated`).
    """
    examples = examples_from_profile(controller, table, budgets, source, scatter=scatter)
    return warm_start(controller, examples, config or IMITATION)

"""Warm start: examples from a profile, on which both stages are trained before GRPO.

Shapes: S samples, K budgets of a sample, C configurations, B = S K examples, D d_model, T budgets
of a grid, G tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from envs.budgets import BudgetSampler
from envs.spec import HEAD_SIZES
from launch.analysis.rivals import constrained_gains
from learner.imitation import WarmStartConfig, WarmStartExamples, WarmStartRecord, warm_start
from policy.controller import Controller
from rollout.fleet import Fleet
from rollout.profiling.conversion import sample_place
from rollout.profiling.profile_table import ProfileTable
from rollout.requests import PrefixRequest

MAX_VIOLATION = 0.04
"""Maximum violation rate of the best configurations at a budget: below the target of 5 %, because
they are chosen in hindsight."""

NUM_GRID = 200
"""Number of budgets at which gains are computed; others take those of the next lower one."""

BUDGETS_OF_A_SAMPLE = 16


def gains(
    table: ProfileTable,
    budgets_SK: np.ndarray,
    *,
    max_violation: float = MAX_VIOLATION,
    scatter: float = 0.0,
) -> np.ndarray:
    """The gain of each configuration at each budget of a sample, float64 [S, K, C].

    Gains are means over all samples of the same task, because the needs of a single sample are not
    visible before it is answered. The allowed violations are those of feasible samples and shared
    by all tasks: one that can hardly meet a budget uses up most of them, and the others have to
    meet it more strictly.
    """
    grid_ms = np.linspace(budgets_SK.min(), budgets_SK.max(), NUM_GRID)
    gains_TGC = constrained_gains(table, grid_ms, max_violation=max_violation, scatter=scatter)
    task_S = np.unique(table.tasks, return_inverse=True)[1]
    places_SK = np.searchsorted(grid_ms, budgets_SK, side="right") - 1
    return gains_TGC[places_SK, task_S[:, None]]


def by_choice(table: ProfileTable, gains_SKC: np.ndarray) -> np.ndarray:
    """Gains by the choices of the four heads, [S K, 3, 5, 5, 5]; -inf where not profiled."""
    arranged = np.full((gains_SKC[..., 0].size, *HEAD_SIZES), -np.inf, np.float32)
    choices_C4 = np.array([knobs.indices() for knobs in table.configurations])
    arranged[:, *choices_C4.T] = gains_SKC.reshape(len(arranged), -1)
    return arranged


def examples_from_profile(
    controller: Controller,
    table: ProfileTable,
    budgets: BudgetSampler,
    fleet: Fleet[Any],
    *,
    scatter: float = 0.0,
    num_budgets: int = BUDGETS_OF_A_SAMPLE,
    seed: int = 0,
) -> WarmStartExamples:
    """Each profiled sample at some budgets, with the gains of all configurations there."""
    rng = np.random.default_rng(seed)
    low_ms, high_ms = budgets.range.low_ms, budgets.range.high_ms
    budgets_SK = rng.uniform(low_ms, high_ms, (len(table.sample_ids), num_budgets))
    with torch.no_grad():
        tokens_BD = controller.budget_tokens(torch.from_numpy(budgets_SK.ravel())).cpu().numpy()
    requests = [
        PrefixRequest(split=split, index=index, budget_tokens_KD=tokens_KD)
        for (split, index), tokens_KD in zip(
            map(sample_place, table.sample_ids),
            tokens_BD.reshape(*budgets_SK.shape, -1),
            strict=True,
        )
    ]
    prefixes = fleet.prefixes(requests)

    def repeated(rows: ArrayLike) -> np.ndarray:
        return np.repeat(rows, num_budgets, axis=0)

    image_SI = np.stack([p.features.image for p in prefixes])
    return WarmStartExamples(
        language_feature_BD=repeated([p.features.language for p in prefixes]),
        image_feature_BI=repeated(image_SI[:, : controller.config.image_dim]),
        budgets_ms_B=budgets_SK.ravel(),
        latency_token_BAPD=np.concatenate([p.latency_tokens for p in prefixes]),
        gains_BAPKN=by_choice(table, gains(table, budgets_SK, scatter=scatter)),
    )


def warm_start_from_profile(
    controller: Controller,
    table: ProfileTable,
    budgets: BudgetSampler,
    fleet: Fleet[Any],
    config: WarmStartConfig | None = None,
    *,
    scatter: float = 0.0,
) -> WarmStartRecord:
    """Trains both stages in place; raises ValueError for an unusable profile.

    The table's latencies must be in the run's calibrated ms and without noise, and `scatter` is the
    noise of a single measurement on the run's devices.
    """
    examples = examples_from_profile(controller, table, budgets, fleet, scatter=scatter)
    return warm_start(controller, examples, config or WarmStartConfig())

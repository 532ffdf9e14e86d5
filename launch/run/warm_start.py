"""Warm start: what a profile knows, both stages and the outcome model know before the first step.

Shapes: S samples, K budgets of a sample, C configurations, B = S K examples, D d_model, T budgets
of a grid, G tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from envs.prices import FREE
from envs.spec import HEAD_SIZES
from launch.analysis.rivals import constrained_gains
from learner.imitation import WarmStartConfig, WarmStartExamples, WarmStartRecord, warm_start
from learner.learner import Learner
from learner.replay_buffer import Episodes
from policy.config import PolicySetup
from policy.controller import Controller
from rollout.fleet import Fleet
from rollout.profiling.conversion import sample_place
from rollout.profiling.profile_table import ProfileTable
from rollout.requests import PrefixRequest

MAX_VIOLATION = 0.04
"""Maximum violation rate of the best configurations at a budget: below the target of 5 %, because
they are chosen in hindsight."""

NUM_GRID = 100
"""Number of budgets at which gains are computed; others take those of the next lower one."""

NUM_PRICES = 6
"""Number of prices above zero for which there are examples."""

TERMS_OF_A_SAMPLE = 16


def gains(
    table: ProfileTable,
    budgets_SK: np.ndarray,
    costs_per_ms_SK: np.ndarray,
    *,
    max_violation: float = MAX_VIOLATION,
    scatter: float = 0.0,
) -> np.ndarray:
    """The gain of each configuration at each of a sample's terms, float64 [S, K, C].

    Gains are means over all samples of the same task, because the needs of a single sample are not
    visible before it is answered. The allowed violations are those of feasible samples and shared
    by all tasks: one that can hardly meet a budget uses up most of them, and the others have to
    meet it more strictly.
    """
    grid_ms = np.linspace(budgets_SK.min(), budgets_SK.max(), NUM_GRID)
    task_S = np.unique(table.tasks, return_inverse=True)[1]
    places_SK = np.searchsorted(grid_ms, budgets_SK, side="right") - 1
    found = np.empty((*budgets_SK.shape, len(table.configurations)))
    for cost_per_ms in np.unique(costs_per_ms_SK):
        gains_TGC = constrained_gains(
            table, grid_ms, max_violation=max_violation, scatter=scatter, cost_per_ms=cost_per_ms
        )
        at_cost = costs_per_ms_SK == cost_per_ms
        tasks_SK = np.broadcast_to(task_S[:, None], budgets_SK.shape)
        found[at_cost] = gains_TGC[places_SK[at_cost], tasks_SK[at_cost]]
    return found


def draw_prices(setup: PolicySetup, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Prices of examples, of which there are few different ones: float64 of the shape."""
    if setup.prices is None:
        return np.full(shape, FREE)
    own = setup.prices
    priced = np.geomspace(own.range.low, own.range.high, NUM_PRICES)
    return np.where(rng.random(shape) < own.share_free, FREE, rng.choice(priced, shape))


def by_choice(table: ProfileTable, gains_SKC: np.ndarray) -> np.ndarray:
    """Gains by the choices of the four heads, [S K, 3, 5, 5, 5]; -inf where not profiled."""
    arranged = np.full((gains_SKC[..., 0].size, *HEAD_SIZES), -np.inf, np.float32)
    choices_C4 = np.array([knobs.indices() for knobs in table.configurations])
    arranged[:, *choices_C4.T] = gains_SKC.reshape(len(arranged), -1)
    return arranged


def examples_from_profile(
    controller: Controller,
    table: ProfileTable,
    setup: PolicySetup,
    fleet: Fleet[Any],
    *,
    full_ms: float,
    scatter: float = 0.0,
    num_terms: int = TERMS_OF_A_SAMPLE,
    seed: int = 0,
) -> WarmStartExamples:
    """Each profiled sample at some budgets and prices, with the gains of all configurations there.

    `full_ms` is the latency of the full configuration, whose time a price is for.
    """
    rng = np.random.default_rng(seed)
    low_ms, high_ms = setup.budgets.range.low_ms, setup.budgets.range.high_ms
    budgets_SK = rng.uniform(low_ms, high_ms, (len(table.sample_ids), num_terms))
    prices_SK = draw_prices(setup, budgets_SK.shape, rng)
    asked = [torch.from_numpy(values_SK.ravel()) for values_SK in (budgets_SK, prices_SK)]
    with torch.no_grad():
        tokens_BD = controller.budget_tokens(*asked).cpu().numpy()
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
        return np.repeat(rows, num_terms, axis=0)

    image_SI = np.stack([p.features.image for p in prefixes])
    return WarmStartExamples(
        language_feature_BD=repeated([p.features.language for p in prefixes]),
        image_feature_BI=repeated(image_SI[:, : controller.config.image_dim]),
        budgets_ms_B=budgets_SK.ravel(),
        prices_B=prices_SK.ravel(),
        latency_token_BAPD=np.concatenate([p.latency_tokens for p in prefixes]),
        gains_BAPKN=by_choice(
            table, gains(table, budgets_SK, prices_SK / full_ms, scatter=scatter)
        ),
    )


def warm_start_from_profile(
    learner: Learner,
    table: ProfileTable,
    setup: PolicySetup,
    fleet: Fleet[Any],
    config: WarmStartConfig | None = None,
    *,
    full_ms: float,
    scatter: float = 0.0,
) -> WarmStartRecord:
    """Trains a new learner's stages and, with replay, its outcome model, in place.

    The profile's outcomes remain experience of the outcome model, which the run corrects.

    Args:
        learner: before its first update.
        table: profile in the run's calibrated ms and without noise.
        setup: budgets and prices of the run.
        fleet: computes the controller's inputs.
        config: of the stages' training.
        full_ms: latency of the full configuration, whose time a price is for.
        scatter: noise of a single measurement on the run's devices.

    Raises:
        ValueError: the profile is unusable.
    """
    examples = examples_from_profile(
        learner.controller, table, setup, fleet, full_ms=full_ms, scatter=scatter
    )
    record = warm_start(learner.controller, examples, config or WarmStartConfig())
    learner.begin_here()
    if learner.replay is not None:
        profiled = Episodes.of_profile(
            table,
            examples.language_feature_BD[::TERMS_OF_A_SAMPLE],
            examples.image_feature_BI[::TERMS_OF_A_SAMPLE],
            learner.replay.tasks,
        )
        learner.replay.take_in_profile(profiled, learner.seed)
    return record

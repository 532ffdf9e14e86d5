"""The best that a supervised model finds from what stage 1 sees: a yardstick for `table_world`.

It has the form of the learner's outcome model, but is fitted to the outcomes of all configurations
on all training samples, where a run executes two of 225. Its choices are those with the highest
expected reward, without a policy, latency tokens or time for a controller.

Shapes: S samples, C configurations, K budgets, I length of the image feature, D d_model.
"""

import numpy as np
import torch

from envs.prices import FREE
from envs.reward import BudgetReward
from envs.spec import all_knobs
from launch.analysis.outcomes import Outcome, outcome
from learner.config import OutcomeModelConfig
from learner.outcome_model import OutcomeModel
from learner.replay_buffer import Episodes, TaskNames
from rollout.simulation.table_samples import TableSamples

BATCH, LEARNING_RATE = 64, 5e-3
VIOLATION_COST = 0.8
ACTIONS_C4 = torch.tensor([knobs.indices() for knobs in all_knobs()])


def fit(train: TableSamples, other: TableSamples, steps: int, seed: int = 0) -> OutcomeModel:
    """Fits a model to all outcomes of one split; its spread is measured on another one."""
    torch.manual_seed(seed)
    episodes = _all_outcomes(train)
    widths = train.language_feature_SD.shape[1], train.image_feature_SI.shape[1]
    config = OutcomeModelConfig()
    model = OutcomeModel(*widths, config)
    model.observe(episodes)
    weights, decay = model.parameters(), config.weight_decay
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    model.train()
    for _ in range(steps):
        loss = model.loss(episodes.rows(torch.randint(len(episodes), (BATCH,))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.spread.fill_(model.spread_on(_all_outcomes(other)))
    return model


def choices(
    model: OutcomeModel,
    test: TableSamples,
    budgets_ms: np.ndarray,
    price: float = FREE,
    full_ms: float | None = None,
) -> Outcome:
    """The outcome of the model's choices at a price on a table."""
    episodes, rows_S = _all_outcomes(test), np.arange(len(test.table.sample_ids))
    worth = BudgetReward(violation_cost=VIOLATION_COST, full_ms=full_ms)
    episodes.prices_M.fill_(price)
    columns_SK = []
    for budget_ms in budgets_ms:
        episodes.budgets_ms_M.fill_(float(budget_ms))
        gains_CS = model.gains(episodes, worth)[:, *ACTIONS_C4.T].T
        columns_SK.append(gains_CS.argmax(0).numpy())
    scores_SC, latencies_SC = _by_knobs(test)
    return outcome(
        np.stack([scores_SC[rows_S, columns_S] for columns_S in columns_SK], 1),
        np.stack([latencies_SC[rows_S, columns_S] for columns_S in columns_SK], 1),
        budgets_ms,
        test.table.feasible(budgets_ms),
    )


def _by_knobs(samples: TableSamples) -> tuple[np.ndarray, np.ndarray]:
    """Scores and latencies [S, C] of all configurations, in the order of `all_knobs`."""
    columns_C = [samples.table.column(knobs) for knobs in all_knobs()]
    return samples.table.scores[:, columns_C], samples.table.latencies_ms[:, columns_C]


def _all_outcomes(samples: TableSamples) -> Episodes:
    """Each sample as a group of all configurations."""
    features = samples.language_feature_SD, samples.image_feature_SI
    return Episodes.of_profile(
        samples.table, *features, TaskNames(sorted(set(samples.table.tasks)))
    )

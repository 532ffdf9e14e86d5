"""Names and values of the scalars of one step, from groups, rewards and update.

Shapes: N groups, G episodes of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from envs.budgets import BudgetSampler
from envs.reward import (
    FIXED_VIOLATION_COST,
    BudgetReward,
    Reward,
    score_within_budget,
    violation_rate,
)
from envs.spec import HEADS
from learner.rewards import rewards_of, violations
from learner.update import UpdateRecord
from rollout.group_rollout import GroupRollout

BUDGET_BINS = 4


def in_budget_accuracy(groups: Sequence[GroupRollout]) -> float:
    """Mean score that counts only within budget."""
    inside = [score_within_budget(g.scores, g.latencies_ms, g.budget_ms) for g in groups]
    return float(np.mean(inside))


def rollout_scalars(
    groups: Sequence[GroupRollout], budgets: BudgetSampler, full_ms: float
) -> dict[str, float]:
    """Scores, violations and latencies of a batch.

    `full_ms` is the latency of the full configuration, whose time a price is for.
    """
    latencies = np.concatenate([g.latencies_ms for g in groups])
    budgets_ms = np.array([g.budget_ms for g in groups])
    feasible_N = np.array([g.feasible for g in groups])
    over_NG = violations(groups)
    at_fixed_cost = rewards_of(
        groups, BudgetReward(violation_cost=FIXED_VIOLATION_COST, full_ms=full_ms)
    )
    scalars = {
        "at_a_glance/accuracy_sampled": in_budget_accuracy(groups),
        "at_a_glance/reward_sampled": float(at_fixed_cost.total.mean()),
        "rollout/score": float(np.concatenate([g.scores for g in groups]).mean()),
        "infeasible/all": float(1 - feasible_N.mean()),
        "rollout/price": float(np.mean([g.price for g in groups])),
        "latency/mean_ms": float(latencies.mean()),
        "latency/slack_ms": float(np.mean([(g.budget_ms - g.latencies_ms).mean() for g in groups])),
        "rollout/empty_answers": float(np.mean([not a for g in groups for a in g.answers])),
    }
    if feasible_N.any():
        rate = float(violation_rate(over_NG, feasible_N[:, None]))
        scalars |= {"at_a_glance/violation_sampled": rate, "violation/all": rate}
    wall = np.concatenate([g.wall_ms for g in groups])
    for quantile in (50, 95, 99):
        scalars[f"latency/p{quantile}_ms"] = float(np.percentile(latencies, quantile))
        scalars[f"latency/wall_p{quantile}_ms"] = float(np.percentile(wall, quantile))
    edges = np.linspace(budgets.range.low_ms, budgets.range.high_ms, BUDGET_BINS + 1)
    bins = np.clip(np.digitize(budgets_ms, edges) - 1, 0, BUDGET_BINS - 1)
    for index in np.unique(bins):
        inside = bins == index
        name = f"budget_{edges[index]:.0f}_to_{edges[index + 1]:.0f}_ms"
        scalars[f"infeasible/{name}"] = float(1 - feasible_N[inside].mean())
        if feasible_N[inside].any():
            rate = violation_rate(over_NG[inside], feasible_N[inside, None])
            scalars[f"violation/{name}"] = float(rate)
    return scalars


def speed_scalars(groups: Sequence[GroupRollout]) -> dict[str, float]:
    """Present speed of each actor relative to the calibration: 1 = the same, less = slower."""
    speeds: dict[str, list[float]] = {}
    for group in groups:
        speeds.setdefault(group.actor, []).append(group.budget_ms / group.device_budget_ms)
    return {f"fleet_speed/{name}": float(np.mean(found)) for name, found in speeds.items()}


def stage_scalars(groups: Sequence[GroupRollout]) -> dict[str, float]:
    """Mean milliseconds per episode by stage, with blocks and decode steps added up."""
    totals: dict[str, float] = {}
    for stages in (stages for g in groups for stages in g.stages_ms):
        for name, elapsed_ms in stages.items():
            kind = name.rpartition("_")[0] if name[-1].isdigit() and "_" in name else name
            totals[kind] = totals.get(kind, 0.0) + elapsed_ms
    count = sum(g.group_size for g in groups)
    return {f"stage/{name}_ms": total / count for name, total in totals.items()}


def update_scalars(update: UpdateRecord, reward: Reward) -> dict[str, float]:
    """Reward components, loss and gradient of one update."""
    loss = update.loss
    scalars = {
        "reward/mean": float(reward.total.mean()),
        **{f"reward/{name}": float(part.mean()) for name, part in reward.components.items()},
        "learner/loss": loss.loss,
        "learner/policy_loss": loss.policy_loss,
        "learner/entropy_bonus": loss.entropy_bonus,
        "learner/grad_norm": update.grad_norm,
        "learner/entropy_coef": update.entropy_coef,
        "learner/clip_share": loss.clip_share,
        "learner/ratio_mean": loss.ratio_mean,
        "learner/ratio_max": loss.ratio_max,
        "learner/importance_mean": loss.importance_mean,
        "learner/importance_capped_share": loss.importance_capped_share,
        "learner/kl_to_initial": loss.reference_kl,
        "learner/kl_to_behaviour": loss.behaviour_kl,
        "learner/advantage_abs_mean": update.advantage_abs_mean,
        "learner/zero_variance_share": update.num_zero_variance_groups / update.num_groups,
        "learner/skipped_updates": update.num_nonfinite_total,
        "learner/staleness_mean": update.staleness_mean,
        "learner/staleness_max": update.staleness_max,
        "learner/policy_version": update.version,
        "learner/state_mb": update.state_bytes / 1e6,
        "learner/memory_mb": update.memory_bytes / 1e6,
    }
    for head, value in zip(HEADS, loss.entropies, strict=True):
        scalars[f"learner_entropy/{head.name}"] = value
    if update.replay is not None:
        scalars |= {f"replay/{name}": value for name, value in asdict(update.replay).items()}
    return scalars

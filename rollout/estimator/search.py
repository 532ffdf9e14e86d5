"""Finds configurations within a budget, in one batched prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from envs.spec import Knobs, Tier, all_knobs
from rollout.estimator.estimator import TARGETS, LatencyEstimator, within_budget


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTokens:
    """Token counts of a sample; the number of vision tokens depends on the tier."""

    text_tokens: int
    vision_tokens: Mapping[Tier, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeasibleConfiguration:
    """A configuration within the budget, with its predictions in ms.

    `max_output_tokens` is (budget - prefill) / decode per token; infinite if that is predicted as
    0.
    """

    knobs: Knobs
    prefill_ms: float
    decode_per_token_ms: float
    max_output_tokens: float


def feasible_configurations(
    estimator: LatencyEstimator,
    sample: SampleTokens,
    budget_ms: float,
    expected_output_tokens: float,
    *,
    grid: Sequence[Knobs] = tuple(all_knobs()),
) -> list[FeasibleConfiguration]:
    """The configurations of a grid that answer in `expected_output_tokens` within the budget.

    Returns:
        Sorted by `max_output_tokens`, largest first; equal ones in the order of the grid.

    Raises:
        ValueError: the grid is empty, a tier has no vision tokens, or a number is not positive.
    """
    missing = sorted({c.tier for c in grid} - set(sample.vision_tokens))
    if not grid or missing:
        names = ", ".join(tier.name.lower() for tier in missing)
        raise ValueError(
            f"the sample has no vision tokens for tier {names}" if missing else "the grid is empty"
        )
    latencies = estimator.predict_from_config(
        {
            "vision_tokens": [sample.vision_tokens[c.tier] for c in grid],
            "text_tokens": sample.text_tokens,
            "tier": torch.tensor([int(c.tier) for c in grid]),
            "top_k": [c.top_k for c in grid],
            "num_active_blocks": [c.num_blocks for c in grid],
        }
    )
    is_feasible = within_budget(latencies, budget_ms, expected_output_tokens).tolist()
    prefill, decode = (latencies[name].tolist() for name in TARGETS)
    found = [
        FeasibleConfiguration(
            knobs=knobs,
            prefill_ms=prefill_ms,
            decode_per_token_ms=decode_ms,
            max_output_tokens=(budget_ms - prefill_ms) / decode_ms if decode_ms else float("inf"),
        )
        for knobs, is_ok, prefill_ms, decode_ms in zip(
            grid, is_feasible, prefill, decode, strict=True
        )
        if is_ok
    ]
    return sorted(found, key=lambda one: -one.max_output_tokens)

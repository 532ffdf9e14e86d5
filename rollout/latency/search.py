"""From a budget back to configurations, in one batched prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from envs.spec import TIERS, Knobs, Tier, all_knobs
from rollout.latency.estimator import TARGETS, LatencyEstimator, within_budget
from rollout.latency.records import LatencyRecord


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Configuration:
    """One point of a grid. The insertion position only labels it: the estimator has no such input.

    Attributes:
        tier: image tier.
        top_k: experts a token visits.
        num_active_blocks: blocks that run.
        insertion_position: 0 where the profile has none.
    """

    tier: Tier
    top_k: int
    num_active_blocks: int
    insertion_position: int = 0

    @classmethod
    def of_knobs(cls, knobs: Knobs) -> Configuration:
        """The configuration of a controller's choice."""
        return cls(
            tier=knobs.tier,
            top_k=knobs.top_k,
            num_active_blocks=knobs.num_blocks,
            insertion_position=knobs.position,
        )


PROFILING_GRID = tuple(
    Configuration(tier=tier, top_k=top_k, num_active_blocks=num_blocks)
    for tier, top_k, num_blocks in product(TIERS, (4, 6, 8, 10, 12), (8, 10, 12, 14, 16))
)
"""The 75 configurations of the profiling grid."""

KNOB_GRID = tuple(Configuration.of_knobs(knobs) for knobs in all_knobs())
"""The controller's 225 configurations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTokens:
    """What a prediction needs of a sample; its vision tokens depend on the tier."""

    text_tokens: int
    vision_tokens: Mapping[Tier, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeasibleConfiguration:
    """A configuration within the budget, with its predictions in ms.

    `max_output_tokens` is (budget - prefill) / decode a token; infinite if decode is predicted 0.
    """

    configuration: Configuration
    prefill_ms: float
    decode_per_token_ms: float
    max_output_tokens: float


def feasible_configurations(
    estimator: LatencyEstimator,
    sample: SampleTokens,
    budget_ms: float,
    expected_output_tokens: float,
    *,
    grid: Sequence[Configuration] = PROFILING_GRID,
) -> list[FeasibleConfiguration]:
    """The configurations of a grid that answer in `expected_output_tokens` within the budget.

    Returns:
        By `max_output_tokens`, largest first; equal ones in the grid's order.

    Raises:
        ValueError: an empty grid, a tier without vision tokens, or a senseless number.
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
            "num_active_blocks": [c.num_active_blocks for c in grid],
        }
    )
    is_feasible = within_budget(latencies, budget_ms, expected_output_tokens).tolist()
    prefill, decode = (latencies[name].tolist() for name in TARGETS)
    found = [
        FeasibleConfiguration(
            configuration=configuration,
            prefill_ms=prefill_ms,
            decode_per_token_ms=decode_ms,
            max_output_tokens=(budget_ms - prefill_ms) / decode_ms if decode_ms else float("inf"),
        )
        for configuration, is_ok, prefill_ms, decode_ms in zip(
            grid, is_feasible, prefill, decode, strict=True
        )
        if is_ok
    ]
    return sorted(found, key=lambda one: -one.max_output_tokens)


def most_accurate_configuration(
    estimator: LatencyEstimator,
    sample: SampleTokens,
    budget_ms: float,
    expected_output_tokens: float,
    *,
    accuracies: Mapping[Configuration, float],
) -> FeasibleConfiguration | None:
    """The feasible configuration of highest accuracy, the fastest of equals; None if none fits.

    The grid is that of `accuracies`, for instance from `accuracies_of`.
    """
    feasible = feasible_configurations(
        estimator, sample, budget_ms, expected_output_tokens, grid=tuple(accuracies)
    )
    return max(feasible, key=lambda one: accuracies[one.configuration], default=None)


def accuracies_of(records: Iterable[LatencyRecord]) -> dict[Configuration, float]:
    """Mean score by configuration; raises ValueError if a record has none."""
    scores: dict[Configuration, list[float]] = {}
    for record in records:
        configuration = Configuration(
            tier=record.tier,
            top_k=record.top_k,
            num_active_blocks=record.num_active_blocks,
            insertion_position=record.insertion_position or 0,
        )
        if record.score is None:
            raise ValueError(
                f"a record of {record.dataset} ({record.sample_key}) has no score: accuracies "
                "need a profile that was scored"
            )
        scores.setdefault(configuration, []).append(record.score)
    return {key: sum(values) / len(values) for key, values in sorted(scores.items())}

"""Knobs, masks and budgets."""

import numpy as np
import pytest

from envs.action_masks import stage2_mask
from envs.budgets import BudgetRange, BudgetSampler
from envs.spec import Knobs, Tier, all_knobs


def test_there_are_225_valid_configurations():
    every = list(all_knobs())
    assert len(every) == len(set(every)) == 225
    assert all(Knobs.from_indices(k.indices()) == k for k in every)


@pytest.mark.parametrize(
    ("position", "allowed"),
    [(1, [12, 13, 14, 15, 16]), (2, [13, 14, 15, 16]), (3, [14, 15, 16]), (4, [15, 16]), (5, [16])],
)
def test_masks(position, allowed):
    mask = stage2_mask(position)[1]
    assert [n for n, ok in zip((12, 13, 14, 15, 16), mask, strict=True) if ok] == allowed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tier": "huge"}, "unknown tier"),
        ({"tier": 3}, "unknown tier"),
        ({"position": 6}, "unknown insertion position"),
        ({"top_k": 9}, "unknown top_k"),
        ({"position": 5, "num_blocks": 12}, r"masked at position 5: use one of \[16\]"),
    ],
)
def test_invalid_knobs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Knobs(**{"tier": "low", "position": 1, "top_k": 4, "num_blocks": 12, **change})


def test_tiers_have_names_and_crops():
    assert [tier.max_crops for tier in Tier] == [3, 6, 12]
    assert Tier.parse("high") is Tier.HIGH


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 2), (3, 1), (float("nan"), 1)])
def test_impossible_ranges_are_refused(low, high):
    with pytest.raises(ValueError, match="ms"):
        BudgetRange(low_ms=low, high_ms=high)


def test_the_stated_share_lies_below():
    sampler = BudgetSampler(
        range=BudgetRange(low_ms=10, high_ms=100), uniform_from_ms=20, share_below=0.25
    )
    rng = np.random.default_rng(0)
    draws = np.array([sampler.draw(rng) for _ in range(4000)])
    assert draws.min() >= 10
    assert draws.max() <= 100
    assert np.mean(draws < 20) == pytest.approx(0.25, abs=0.03)
    assert sampler.evenly(4).tolist() == [30, 50, 70, 90], "the middles of four parts"


def test_the_range_comes_from_measurements():
    sampler = BudgetSampler.from_latencies([10.0] * 97 + [10.5, 20, 20], np.linspace(40, 60, 101))
    assert sampler.range.low_ms == pytest.approx(8)
    assert sampler.uniform_from_ms == 10, "the cheapest configuration's median"
    assert sampler.range.high_ms == pytest.approx(59)
    with pytest.raises(ValueError, match="outside"):
        BudgetSampler(range=BudgetRange(low_ms=1, high_ms=2), uniform_from_ms=3)
    with pytest.raises(ValueError, match="not within"):
        BudgetSampler.between(1, 2, share_below=1.0)
    assert BudgetSampler.between(1, 2).range.low_ms == 1, "no share, nothing below"

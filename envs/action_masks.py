"""Which choices of a stage are allowed: masks of the action space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.spec import (
    NUM_BLOCKS,
    POSITIONS,
    TIERS,
    TOP_KS,
    allowed_num_blocks,
)

MAX_CHOICES = 5
"""Choices of the widest head; each of an action's two entries lies below it."""

ActionMask = tuple[np.ndarray, np.ndarray]


def num_blocks_mask(position: int) -> np.ndarray:
    """Which of NUM_BLOCKS stage 2 may choose after it ran at `position`: bool [5]."""
    return np.isin(NUM_BLOCKS, allowed_num_blocks(position))


def stage1_mask() -> ActionMask:
    """Mask of (tier, position), in the form that `MultiDiscrete.sample(mask)` takes."""
    tiers = np.arange(MAX_CHOICES) < len(TIERS)
    return tiers.astype(np.int8), np.ones(len(POSITIONS), dtype=np.int8)


def stage2_mask(position: int) -> ActionMask:
    """Mask of (top_k, num_blocks) after an insertion position."""
    return np.ones(len(TOP_KS), dtype=np.int8), num_blocks_mask(position).astype(np.int8)


def is_allowed(action: np.ndarray | Sequence[int], mask: ActionMask) -> bool:
    """Whether a pair of choice indices is within both masks."""
    return all(0 <= a < len(m) and m[a] == 1 for a, m in zip(action, mask, strict=True))

"""Which choices of a stage are allowed: masks of the action space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.spec import (
    HEAD_SIZES,
    POSITIONS,
    STAGE1_HEADS,
    STAGE2_HEADS,
    Head,
    all_knobs,
)

MAX_CHOICES = max(HEAD_SIZES)
"""Choices of the widest head; each of an action's entries lies below it."""

ActionMask = tuple[np.ndarray, ...]
"""A mask per head of a stage, each of MAX_CHOICES."""


def stage2_allowed(position: int) -> np.ndarray:
    """Which choices stage 2 may take after it ran at `position`: bool [sum(STAGE2_SIZES)]."""
    return np.concatenate([np.isin(head.choices, head.allowed(position)) for head in STAGE2_HEADS])


def masked_configurations() -> np.ndarray:
    """Which combinations of choices are no configuration: bool [*HEAD_SIZES]."""
    masked = np.ones(HEAD_SIZES, dtype=bool)
    masked[tuple(np.transpose([knobs.indices() for knobs in all_knobs()]))] = False
    return masked


def stage1_mask() -> ActionMask:
    """Mask of stage 1's heads, in the form that `MultiDiscrete.sample(mask)` takes."""
    return _masks(STAGE1_HEADS, POSITIONS[0])


def stage2_mask(position: int) -> ActionMask:
    """Mask of stage 2's heads after an insertion position."""
    return _masks(STAGE2_HEADS, position)


def is_allowed(action: np.ndarray | Sequence[int], mask: ActionMask) -> bool:
    """Whether a stage's choice indices are within its masks."""
    return all(0 <= a < len(m) and m[a] == 1 for a, m in zip(action, mask, strict=True))


def _masks(heads: Sequence[Head], position: int) -> ActionMask:
    masks = [np.zeros(MAX_CHOICES, dtype=np.int8) for _ in heads]
    for mask, head in zip(masks, heads, strict=True):
        mask[: len(head.choices)] = np.isin(head.choices, head.allowed(position))
    return tuple(masks)

"""The order in which a run passes through a data set: each sample once per epoch.

An index names an order and a place in it: `index = order * PLACES + place`. Runs with different
seeds take different orders, and a place alone says which sample comes next, so that a resumed run
continues exactly where it stopped. Tasks that render their samples take any index as a seed.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np

PLACES = 2**24
"""Places of one order; a run that needs more continues in the next order."""

NUM_ORDERS = 2**31 // PLACES


def first_index(seed: int) -> int:
    """The index at which a run with this seed starts."""
    return seed % NUM_ORDERS * PLACES


def row_at(name: str, split: str, index: int, size: int) -> int:
    """The row of a data set's split at an index.

    Every `size` consecutive places, from the first one on, are an epoch: a permutation of all rows
    that depends on name, split, order and epoch alone.

    Raises:
        ValueError: the index is negative or the split empty.
    """
    if index < 0 or size < 1:
        raise ValueError(f"{name}/{split} has {size} samples and no index {index}")
    order, place = divmod(index, PLACES)
    epoch, position = divmod(place, size)
    return int(permutation(f"{name}/{split}", order, epoch, size)[position])


@lru_cache(maxsize=32)
def permutation(name: str, order: int, epoch: int, size: int) -> np.ndarray:
    """The order of `size` things in one epoch, int32 [size]."""
    rng = np.random.default_rng([20260101, zlib.crc32(name.encode()), order, epoch])
    return rng.permutation(size).astype(np.int32)

"""The questions of a split, and the keys that identify their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from envs.tasks.vqa.rows import Rows, Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Rows of one published split, in numbers instead of Python objects: there may be 444,000.

    Attributes:
        rows: all rows of the published split.
        numbers: the rows of this split, int64 [N].
        codes: their pictures, as places in `names`, int32 [N].
        names: a pyarrow array of keys of pictures, each once.
        key: what the rows depend on, for what is derived from them.
        origin: where they come from, in words.
    """

    rows: Rows
    numbers: np.ndarray
    codes: np.ndarray
    names: Any
    key: tuple[Any, ...] = ()
    origin: str = ""

    def where(self, keep: Sequence[bool] | np.ndarray) -> Split:
        """The split with a part of its rows."""
        chosen = np.flatnonzero(keep)
        return replace(self, numbers=self.numbers[chosen], codes=self.codes[chosen])

    def keys(self) -> frozenset[str]:
        """The keys of its pictures."""
        if not len(self.codes):
            return frozenset()
        return frozenset(self.names.take(np.unique(self.codes)).to_pylist())

    def has_picture_in(self, keys: Iterable[str]) -> np.ndarray:
        """Which of its questions have a picture among these, bool [N]."""
        if not len(self.codes):
            return np.zeros(0, bool)
        import pyarrow as pa
        from pyarrow import compute

        sought = compute.SetLookupOptions(pa.array(keys, pa.string()))
        among = compute.call_function("is_in", [self.names], sought)
        return among.to_numpy(zero_copy_only=False)[self.codes]


EMPTY = Split(
    rows=Stored(table=None, split=""),
    numbers=np.zeros(0, np.int64),
    codes=np.zeros(0, np.int32),
    names=None,
)

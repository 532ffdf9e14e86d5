"""The interface of a tracker, and what it is told of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PROJECT = "latency-budget-grpo"
"""Project or experiment that runs are listed under, unless a tracker's own settings name one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """The run that is tracked.

    Attributes:
        name: what people call it.
        folder: its local folder.
        config: its settings by their dotted names.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]


class Tracker(Protocol):
    """What a run tells its trackers. No method raises, or waits longer than a stated limit."""

    def begin_at(self, first_step: int) -> None:
        """The run starts or goes back: rows of `first_step` and later are undone."""
        ...

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """A row of metrics.jsonl was written."""
        ...

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """The distribution of some values."""
        ...

    def figure(self, step: int, name: str, figure: Any) -> None:
        """A matplotlib figure."""
        ...

    def committed(self, num_rows: int) -> None:
        """The first `num_rows` rows of metrics.jsonl belong to a checkpoint."""
        ...

    def close(self) -> None:
        """The run ends."""
        ...

"""Means with their intervals: one convention for every table, plot and verdict.

Shapes: S samples, K budgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

Z_95 = 1.96
"""Standard errors on each side of a mean that cover 95 % of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and half the width of its 95 % interval; printed as `0.812 ± 0.025`."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values_S: np.ndarray) -> Self:
        """Of independent samples; the half width of a single one is NaN."""
        return cls(float(values_S.mean()), float(half_widths(values_S)))

    @property
    def excludes_zero(self) -> bool:
        """Whether chance is an unlikely explanation of a difference."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"

    def signed(self) -> str:
        """The same for a difference, with its sign, which is a plus for one that rounds to 0."""
        return f"{self.mean:+z.3f} ± {self.half_width:.3f}"


def half_widths(values_S: np.ndarray) -> np.ndarray:
    """Half the width of the 95 % interval of the mean over the first axis."""
    if len(values_S) < 2:
        return np.full(values_S.shape[1:], np.nan)
    return Z_95 * values_S.std(0, ddof=1) / len(values_S) ** 0.5


def or_none(values: np.ndarray) -> list[float | None]:
    """Plain JSON values, which have no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]

"""How much device time a controller uses at each price of time: what a server prices its load by.

A run writes its controller's curve into its folder at the end of its final evaluation.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

from envs.prices import check_prices

PRICE_CURVE_NAME = "price_curve.json"
"""Name of the file in the folder of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceCurve:
    """Mean device time by price, a line between the points; it never rises.

    Attributes:
        prices: P prices in ascending order.
        time_ms: mean device time of an answer at each, in the run's calibrated ms.
    """

    prices: tuple[float, ...]
    time_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        check_prices(self.prices, "prices of the curve")
        if len(self.time_ms) != len(self.prices):
            raise ValueError(
                f"the curve has {len(self.prices)} prices and {len(self.time_ms)} times: give one "
                "time for each price"
            )
        if not all(0 < ms < float("inf") for ms in self.time_ms):
            raise ValueError(f"the curve's times are {self.time_ms}: give finite ones above 0 ms")
        if any(later > earlier for earlier, later in pairwise(self.time_ms)):
            raise ValueError(
                f"the curve's times are {self.time_ms}: give times that do not rise with the price"
            )

    @classmethod
    def fitted(cls, prices: Sequence[float], time_ms: Sequence[float]) -> Self:
        """The falling curve that is closest to measured times, in least squares.

        Measured times rise with the price where they are equal up to noise.
        """
        from scipy.optimize import isotonic_regression  # slow to import; a server only reads

        falling = isotonic_regression(np.asarray(time_ms, np.float64), increasing=False).x
        return cls(prices=tuple(map(float, prices)), time_ms=tuple(falling.tolist()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote; raises ValueError naming the file if it is unusable."""
        try:
            fields = json.loads(path.read_text())
            return cls(
                prices=tuple(map(float, fields["prices"])),
                time_ms=tuple(map(float, fields["time_ms"])),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is not a price curve ({error}): delete it to serve without one"
            ) from None

    def save(self, path: Path) -> None:
        """Writes the curve as JSON."""
        fields = {"prices": list(self.prices), "time_ms": list(self.time_ms)}
        path.write_text(json.dumps(fields) + "\n")

    def time_at(self, price: float) -> float:
        """Mean device time at a price, in calibrated ms; beyond the ends that of the end."""
        return float(np.interp(price, self.prices, self.time_ms))

    def price_for(self, time_ms: float) -> float:
        """The lowest price at which an answer takes at most this long on average.

        It is the highest one of the curve if none is enough.
        """
        # The number of points that take longer; times are in descending order.
        above = bisect_left(self.time_ms, -time_ms, key=lambda ms: -ms)
        if above == 0:
            return self.prices[0]
        if above == len(self.prices):
            return self.prices[-1]
        (slow_ms, fast_ms), (low, high) = (
            values[above - 1 : above + 1] for values in (self.time_ms, self.prices)
        )
        return low + (high - low) * (slow_ms - time_ms) / (slow_ms - fast_ms)

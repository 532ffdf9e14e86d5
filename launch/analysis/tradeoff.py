"""Policies as curves of accuracy within budget against mean device time, one point per price.

A price of time (0: time is free) decides how much of its device time a policy uses. Policies that
choose by price are therefore compared along their whole curves: how much device time one of them
needs for the accuracy of another, and how accurate it is in the time of the other.

A curve is the line through all points in the order of their times, and both policies' curves are
read in the same way. Reducing the points to their Pareto front would be optimistic: among noisy
points it keeps the lucky ones. Done to one side only, it finds a difference between equal policies.

Shapes: P prices, S samples, K budgets, R resamples, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from envs.reward import violation_rate
from launch.analysis.outcomes import Outcome
from launch.analysis.statistics import Z_95, Interval, half_widths

RESAMPLES = 1000
SEED = 0
ROUNDING = 1e-9
"""Values closer than this are equal: sums of the same numbers, perhaps in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one policy achieved at every price, by sample.

    A policy that ignores the price, like a static configuration, has a single point.

    Attributes:
        prices: P prices in ascending order.
        accuracy_PS: score that counts only within budget, mean over the budgets, [P, S].
        time_ms_PS: device time, mean over the budgets, [P, S].
        violation_P: share of feasible episodes over budget, [P]; NaN where none is feasible.
    """

    prices: tuple[float, ...]
    accuracy_PS: np.ndarray
    time_ms_PS: np.ndarray
    violation_P: np.ndarray

    def __post_init__(self) -> None:
        if not self.prices or list(self.prices) != sorted(set(self.prices)):
            raise ValueError(f"prices are {self.prices}: give at least one, each once, ascending")
        for name in ("accuracy_PS", "time_ms_PS"):
            values = getattr(self, name)
            if values.ndim != 2 or len(values) != len(self.prices) or not values.size:
                raise ValueError(
                    f"{name} is {values.shape}: give one row per price ({len(self.prices)}) and "
                    "one column per sample"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"{name} is not finite: leave such samples out for all policies")
        if self.accuracy_PS.shape != self.time_ms_PS.shape:
            raise ValueError(
                f"accuracy_PS is {self.accuracy_PS.shape} and time_ms_PS {self.time_ms_PS.shape}: "
                "give both for the same samples"
            )
        if (self.time_ms_PS <= 0).any():
            raise ValueError("a device time is not positive: give milliseconds")
        if self.violation_P.shape != (len(self.prices),):
            raise ValueError(f"violation_P is {self.violation_P.shape}: give one per price")

    @classmethod
    def of_episodes(
        cls,
        prices: Sequence[float],
        inside_PSK: np.ndarray,
        latency_ms_PSK: np.ndarray,
        over_PSK: np.ndarray,
        feasible_SK: np.ndarray,
    ) -> Self:
        """From scores that are zero over budget, latencies, and which episodes were over budget."""
        feasible_PSK = np.broadcast_to(feasible_SK, np.shape(over_PSK))
        by_price = [violation_rate(*pair) for pair in zip(over_PSK, feasible_PSK, strict=True)]
        return cls(
            prices=tuple(prices),
            accuracy_PS=np.asarray(inside_PSK, np.float64).mean(-1),
            time_ms_PS=np.asarray(latency_ms_PSK, np.float64).mean(-1),
            violation_P=np.array(by_price, np.float64),
        )

    @property
    def accuracy_P(self) -> np.ndarray:
        """Accuracy within budget at each price, [P]."""
        return self.accuracy_PS.mean(1)

    @property
    def accuracy_ci_P(self) -> np.ndarray:
        """Half the width of its 95 % interval over samples, [P]."""
        return half_widths(self.accuracy_PS.T)

    @property
    def time_ms_P(self) -> np.ndarray:
        """Mean device time at each price, [P]."""
        return self.time_ms_PS.mean(1)

    @property
    def violation_rate(self) -> float:
        """Share of feasible episodes over budget, all prices together."""
        return float(self.violation_P.mean())

    @property
    def ignores_price(self) -> bool:
        """Whether all points are the same."""
        return all(bool((v == v[0]).all()) for v in (self.accuracy_PS, self.time_ms_PS))


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRatio:
    """Our device time over theirs at the same accuracies; below 1 we need less.

    Attributes:
        ratio: geometric mean over their points that our curve reaches.
        low: lower end of its 95 % interval; NaN with a single sample.
        high: upper end; infinite if chance may explain that any point is reached at all.
        num_reached: number of their points whose accuracy our curve reaches.
        num_points: number of all their points.
    """

    ratio: float
    low: float
    high: float
    num_reached: int
    num_points: int

    @property
    def is_gain(self) -> bool:
        """Whether chance is an unlikely explanation of needing less time."""
        return self.high < 1 - ROUNDING

    @property
    def is_loss(self) -> bool:
        """Whether chance is an unlikely explanation of needing more time."""
        return self.low > 1 + ROUNDING

    def __str__(self) -> str:
        """Like `0.93 (0.90 to 0.96)`."""
        if np.isinf(self.high):
            return f"{self.ratio:.2f} ({self.low:.2f} or more)"
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyLead:
    """Our accuracy minus theirs in the same device time; above 0 we are more accurate.

    Attributes:
        difference: mean over their points whose time is enough for our cheapest one.
        num_reached: number of those points.
        num_points: number of all their points.
    """

    difference: Interval
    num_reached: int
    num_points: int

    @property
    def is_gain(self) -> bool:
        """Whether chance is an unlikely explanation of being more accurate."""
        return self.difference.excludes_zero and self.difference.mean > ROUNDING

    @property
    def is_loss(self) -> bool:
        """Whether chance is an unlikely explanation of being less accurate."""
        return self.difference.excludes_zero and self.difference.mean < -ROUNDING

    def __str__(self) -> str:
        """Like `+0.012 ± 0.008`."""
        return self.difference.signed()


def time_at_equal_accuracy(
    ours: Curve, theirs: Curve, *, resamples: int = RESAMPLES
) -> TimeRatio | None:
    """The device time we need for the accuracies of their points, over the time they need.

    Both times are the least at which a curve reaches the accuracy, so the ratio errs in a rival's
    favour where its accuracy hardly depends on its price: a cheap point may have it by luck. An
    accuracy below all of ours takes the time of our cheapest point, which is more accurate. One
    above all of ours is not reached and left out.

    The interval is a percentile interval of the bootstrap over samples, the same ones for both
    policies. A resample in which nothing is reached counts as needing more time than any other.

    Returns:
        None if our curve does not reach the accuracy of any of their points.

    Raises:
        ValueError: the policies ran on different numbers of samples.
    """
    (our_time_RP, our_accuracy_RP), (their_time_RP, their_accuracy_RP) = _resampled(
        ours, theirs, resamples
    )
    our_need_RP = _time_to_reach(our_time_RP, our_accuracy_RP, their_accuracy_RP)
    their_need_RP = _time_to_reach(their_time_RP, their_accuracy_RP, their_accuracy_RP)
    log_ratio_RP, reached_RP = np.log(our_need_RP / their_need_RP), np.isfinite(our_need_RP)
    mean_R = np.exp(_mean_where(log_ratio_RP, reached_RP, otherwise=np.inf))
    if not reached_RP[0].any():
        return None
    low, high = np.nan, np.nan
    if ours.accuracy_PS.shape[1] > 1:
        # An order statistic, because infinite values cannot be interpolated.
        low, high = np.quantile(mean_R[1:], [0.025, 0.975], method="inverted_cdf")
    return TimeRatio(
        ratio=float(mean_R[0]),
        low=float(low),
        high=float(high),
        num_reached=int(reached_RP[0].sum()),
        num_points=len(theirs.prices),
    )


def accuracy_at_equal_time(
    ours: Curve, theirs: Curve, *, resamples: int = RESAMPLES
) -> AccuracyLead | None:
    """Our accuracy at the device times of their points, minus theirs.

    A time above all of ours takes our most expensive point: the most accurate one might be so by
    luck. A time below all of ours is not enough for any answer of ours and left out.

    The interval is 1.96 standard deviations of the bootstrap over samples, the same ones for both
    policies.

    Returns:
        None if every point of theirs takes less time than our cheapest one.

    Raises:
        ValueError: the policies ran on different numbers of samples.
    """
    (our_time_RP, our_accuracy_RP), (their_time_RP, their_accuracy_RP) = _resampled(
        ours, theirs, resamples
    )
    lead_RP = _accuracy_within(our_time_RP, our_accuracy_RP, their_time_RP) - their_accuracy_RP
    reached_RP = np.isfinite(lead_RP)
    mean_R = _mean_where(lead_RP, reached_RP, otherwise=np.nan)
    if not reached_RP[0].any():
        return None
    half_width = np.nan
    if ours.accuracy_PS.shape[1] > 1:
        half_width = Z_95 * float(np.nanstd(mean_R[1:]))
    return AccuracyLead(
        difference=Interval(float(mean_R[0]), half_width),
        num_reached=int(reached_RP[0].sum()),
        num_points=len(theirs.prices),
    )


def lead_at_lowest_price(ours: Curve, theirs: Curve) -> Interval:
    """Our accuracy minus theirs where time is cheapest, paired by sample.

    Raises:
        ValueError: the policies ran on different numbers of samples.
    """
    _check_same_samples(ours, theirs)
    return Interval.of(ours.accuracy_PS[0] - theirs.accuracy_PS[0])


def _check_same_samples(ours: Curve, theirs: Curve) -> None:
    counts = ours.accuracy_PS.shape[1], theirs.accuracy_PS.shape[1]
    if counts[0] != counts[1]:
        raise ValueError(
            f"one policy ran on {counts[0]} samples and the other on {counts[1]}: compare them on "
            "the same samples, in the same order"
        )


Points = tuple[np.ndarray, np.ndarray]
"""Times and accuracies of a curve's points in the order of their times, [R, P] each."""


def _resampled(ours: Curve, theirs: Curve, resamples: int) -> tuple[Points, Points]:
    """The points of both curves: first of the samples themselves, then of each resample."""
    _check_same_samples(ours, theirs)
    size = ours.accuracy_PS.shape[1]
    drawn_RS = np.random.default_rng(SEED).integers(0, size, (resamples, size))
    flat = drawn_RS + size * np.arange(resamples)[:, None]
    counts_RS = np.bincount(flat.ravel(), minlength=resamples * size).reshape(resamples, size)
    weights_RS = np.concatenate([np.ones((1, size)), counts_RS]) / size
    return _points(ours, weights_RS), _points(theirs, weights_RS)


def _points(curve: Curve, weights_RS: np.ndarray) -> Points:
    time_RP, accuracy_RP = weights_RS @ curve.time_ms_PS.T, weights_RS @ curve.accuracy_PS.T
    order_RP = time_RP.argsort(1, kind="stable")
    return (
        np.take_along_axis(time_RP, order_RP, 1),
        np.take_along_axis(accuracy_RP, order_RP, 1),
    )


def _time_to_reach(
    time_RP: np.ndarray, accuracy_RP: np.ndarray, wanted_RQ: np.ndarray
) -> np.ndarray:
    """The least time at which curves reach accuracies, [R, Q]; NaN where they never do."""
    is_enough_RQP = accuracy_RP[:, None, :] >= wanted_RQ[:, :, None] - ROUNDING
    time_RQ = _interpolated(accuracy_RP, time_RP, is_enough_RQP.argmax(2), wanted_RQ)
    return np.where(is_enough_RQP.any(2), time_RQ, np.nan)


def _accuracy_within(
    time_RP: np.ndarray, accuracy_RP: np.ndarray, limit_RQ: np.ndarray
) -> np.ndarray:
    """The accuracy of curves at times, [R, Q]; NaN below the time of their cheapest points."""
    num_within_RQ = (time_RP[:, None, :] <= limit_RQ[:, :, None] + ROUNDING).sum(2)
    end_RQ = np.minimum(num_within_RQ, time_RP.shape[1] - 1)
    accuracy_RQ = _interpolated(time_RP, accuracy_RP, end_RQ, limit_RQ)
    return np.where(num_within_RQ > 0, accuracy_RQ, np.nan)


def _interpolated(
    x_RP: np.ndarray, y_RP: np.ndarray, end_RQ: np.ndarray, x_RQ: np.ndarray
) -> np.ndarray:
    """The height y at x of the segments that end at the given points, [R, Q].

    There is no extrapolation, and a segment that ends at the first point is that point.
    """
    start_RQ = np.maximum(end_RQ - 1, 0)
    x_start, x_end = (np.take_along_axis(x_RP, at_RQ, 1) for at_RQ in (start_RQ, end_RQ))
    y_start, y_end = (np.take_along_axis(y_RP, at_RQ, 1) for at_RQ in (start_RQ, end_RQ))
    width = x_end - x_start
    share = np.divide(x_RQ - x_start, width, out=np.ones_like(width), where=width > 0)
    return y_start + share.clip(0, 1) * (y_end - y_start)


def _mean_where(values_RP: np.ndarray, counted_RP: np.ndarray, *, otherwise: float) -> np.ndarray:
    """The mean of the values that count in each row, [R]; `otherwise` where none does."""
    num_R = counted_RP.sum(1)
    sum_R = np.where(counted_RP, values_RP, 0).sum(1)
    return np.divide(sum_R, num_R, out=np.full(len(num_R), otherwise), where=num_R > 0)


def curves_of_outcomes(found: Mapping[float, Mapping[str, Outcome]]) -> dict[str, Curve]:
    """The curve of each policy, from its outcomes by price."""
    prices = sorted(found)
    return {
        name: Curve(
            prices=tuple(prices),
            accuracy_PS=np.stack([found[price][name].by_sample for price in prices]),
            time_ms_PS=np.stack([found[price][name].ms_by_sample for price in prices]),
            violation_P=np.array([found[price][name].violation_rate for price in prices]),
        )
        for name in found[prices[0]]
    }

"""The charts of one or several runs.

Shapes: P prices, K budgets, S samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from envs.spec import HEADS, Head
from launch.analysis.greedy_sweep import GreedySweep
from launch.analysis.rivals import TARGET_VIOLATION
from launch.analysis.statistics import Interval
from launch.analysis.tradeoff import Curve
from launch.analysis.tradeoff_report import CONTROLLER
from launch.run_report.record import MissingPieceError, Row, RunRecord, present
from launch.run_report.svg import Axis, Level, Point, Series, line_chart, percent, tenths

ACCURACY = Axis(label="accuracy within budget", written="{:.3g}".format)
TIME_MS = Axis(label="mean device time (ms)")
BUDGET_MS = Axis(label="latency budget (ms)")
STEPS = Axis(label="steps done", from_zero=True, whole=True)
VIOLATIONS = Axis(label="late, of feasible", written=percent, from_zero=True)

HELD_OUT = "at_a_glance/accuracy_held_out"
LEVEL = "at_a_glance/level_of_"


def tradeoff_chart(curves: Mapping[str, Curve], labelled: str = "") -> str:
    """Accuracy against device time, one point per price; one curve may show prices and bars."""
    series = [
        Series(name=name, points=_curve_points(name, curve, is_labelled=name == labelled))
        for name, curve in curves.items()
    ]
    return line_chart("Accuracy against device time, by price", series, TIME_MS, ACCURACY)


def _curve_points(name: str, curve: Curve, *, is_labelled: bool) -> list[Point]:
    """The points of a curve in the order of their times."""
    rows = zip(
        *(curve.prices, curve.time_ms_P, curve.accuracy_P, curve.accuracy_ci_P, curve.violation_P),
        strict=True,
    )
    points = [
        Point(
            x=float(ms),
            y=float(accuracy),
            half_width=float(ci) if is_labelled and np.isfinite(ci) else 0.0,
            label=f"{price:g}" if is_labelled else "",
            title=f"{name}, price {price:g}: accuracy {with_interval(accuracy, ci)} "
            f"in {ms:.1f} ms, late {tenths(late) if np.isfinite(late) else 'none feasible'}",
        )
        for price, ms, accuracy, ci, late in rows
    ]
    if curve.ignores_price:
        points = points[:1]
    return sorted(points, key=lambda point: point.x)


def with_interval(mean: float, half_width: float) -> str:
    """A mean with its interval, which a single sample does not have."""
    if not np.isfinite(half_width):
        return f"{mean:.3f}"
    return str(Interval(float(mean), float(half_width)))


def violations_chart(rates: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Violations by budget, mean over the prices; by name budgets and rates [K]."""
    series = [
        Series(
            name=name,
            points=[
                Point(x=x, y=y, title=f"{name}, {x:.0f} ms: {tenths(y)}")
                for x, y in zip(budgets_K.tolist(), rates_K.tolist(), strict=True)
            ],
        )
        for name, (budgets_K, rates_K) in rates.items()
    ]
    target = Level(name=f"{percent(TARGET_VIOLATION)} (target)", y=TARGET_VIOLATION)
    return line_chart(
        "Violations by budget, mean over the prices", series, BUDGET_MS, VIOLATIONS, [target]
    )


def violation_rates(record: RunRecord) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Budgets and violation rates of each policy, mean over the prices."""
    evaluation = present(record.evaluation)
    outcomes = list(evaluation.outcomes().values())
    found = {}
    for name in outcomes[0]:
        by_price_PK = np.array([by_name[name].violation for by_name in outcomes])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no budget of this size is feasible
            found[name] = (evaluation.first.budgets_ms, np.nanmean(by_price_PK, axis=0))
    return found


def learning_chart(records: Sequence[RunRecord]) -> str:
    """Held-out accuracy over steps from step 0, with the tables' levels as lines.

    Levels are drawn for a single run: each run has levels of its own.
    """
    series, levels = [], []
    for record in records:
        rows = [row for row in present(record.rows) if HELD_OUT in row]
        if not rows:
            raise MissingPieceError("No held-out evaluation has been written yet.")
        name = CONTROLLER if len(records) == 1 else record.name
        series.append(Series(name=name, points=[_held_out_point(name, row) for row in rows]))
        if len(records) == 1:
            levels = [
                Level(name=f"{key.removeprefix(LEVEL).replace('_', ' ')}", y=float(value))
                for key, value in rows[-1].items()
                if key.startswith(LEVEL)
            ]
    return line_chart(
        "Held-out accuracy within budget while training", series, STEPS, ACCURACY, levels
    )


def _held_out_point(name: str, row: Row) -> Point:
    done, accuracy = row["step"] + 1, float(row[HELD_OUT])
    return Point(x=done, y=accuracy, title=f"{name} after {done} steps: {accuracy:.3f}")


def choice_charts(sweeps: Mapping[str, GreedySweep]) -> list[str]:
    """The mean choice of each head by budget, one line per run."""
    return [
        line_chart(
            f"Mean {head.title}",
            [
                Series(name=name, points=_choice_points(name, sweep, column, head))
                for name, sweep in sweeps.items()
            ],
            BUDGET_MS,
            Axis(label=head.title),
        )
        for column, head in enumerate(HEADS)
    ]


def _choice_points(name: str, sweep: GreedySweep, column: int, head: Head) -> list[Point]:
    means_K = np.array(head.amounts)[sweep.actions[..., column]].mean(0)
    return [
        Point(x=ms, y=mean, title=f"{name}, {ms:.0f} ms: {mean:.2f}")
        for ms, mean in zip(sweep.budgets_ms.tolist(), means_K.tolist(), strict=True)
    ]

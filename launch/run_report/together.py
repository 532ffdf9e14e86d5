"""Several runs taken together, as runs of one recipe with different seeds are.

Shapes: R runs, P prices, S samples, K budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from envs.reward import violation_rate
from launch.analysis.tradeoff import Curve
from launch.analysis.tradeoff_report import CONTROLLER
from launch.run_report import markup, one_run
from launch.run_report.record import Evaluation, MissingPieceError, RunRecord, present
from launch.run_report.svg import tenths


def together(records: Sequence[RunRecord]) -> str:
    """The means over the runs next to their rivals', the spread of the runs, and violations.

    Raises:
        MissingPieceError: fewer than two runs answered the same samples at the same prices.
    """
    found = [present(r.evaluation) for r in records if r.has(r.evaluation)]
    if len(found) < 2 or len({_asked(evaluation) for evaluation in found}) > 1:
        raise MissingPieceError("No two runs were evaluated on the same samples and prices alone.")
    curves = mean_curves([evaluation.curves() for evaluation in found])
    first_R = [evaluation.curves()[CONTROLLER].accuracy_P[0] for evaluation in found]
    text = (
        f"Means over the {len(found)} runs, by sample, for the controllers and for the rivals that "
        "ran in turns with each; intervals are over samples. Between the runs, the controllers' "
        f"accuracy at the lowest price has a standard deviation of {np.std(first_R, ddof=1):.4f}."
    )
    return (
        one_run.comparison_table(curves)
        + markup.paragraph(text, "soft")
        + points_table(curves)
        + violations_table(found)
    )


def _asked(evaluation: Evaluation) -> tuple[object, ...]:
    return evaluation.first.sample_ids, tuple(evaluation.sweeps)


def mean_curves(curves: Sequence[Mapping[str, Curve]]) -> dict[str, Curve]:
    """The means of the curves of the policies that all runs have."""
    shared = [name for name in curves[0] if all(name in one for one in curves)]
    return {name: _mean([one[name] for one in curves]) for name in shared}


def _mean(curves: Sequence[Curve]) -> Curve:
    fields = ("accuracy_PS", "time_ms_PS", "violation_P")
    means = {name: np.mean([getattr(curve, name) for curve in curves], 0) for name in fields}
    return Curve(prices=curves[0].prices, **means)


def points_table(curves: Mapping[str, Curve]) -> str:
    """Accuracy and device time of each policy at each price."""
    prices = next(iter(curves.values())).prices
    rows = []
    for name, curve in curves.items():
        points = zip(curve.accuracy_P, curve.time_ms_P, strict=True)
        rows.append([name, *(f"{accuracy:.3f}, {ms:.1f} ms" for accuracy, ms in points)])
    return markup.table(["policy", *(f"price {price:g}" for price in prices)], rows)


def violations_table(found: Sequence[Evaluation]) -> str:
    """The controllers' violations of feasible episodes by price and budget, means over the runs."""
    rows = []
    for price in found[0].sweeps:
        sweeps = [evaluation.sweeps[price] for evaluation in found]
        rates_RK = [violation_rate(s.violations, s.feasible, axis=0) for s in sweeps]
        rates_K = np.mean(rates_RK, 0)
        rows.append([f"violations at price {price:g}", *(tenths(rate) for rate in rates_K)])
    count = len(found[0].first.budgets_ms)
    places = ["tightest", *(f"{place}." for place in range(2, count)), "largest"][:count]
    return markup.table(["the controllers", *(f"{place} budget" for place in places)], rows)

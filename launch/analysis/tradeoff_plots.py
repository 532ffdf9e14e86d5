"""Plots of policies as curves of accuracy within budget against mean device time.

Shapes: P prices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from launch.analysis.rivals import TARGET_VIOLATION
from launch.analysis.tradeoff import Curve
from launch.analysis.tradeoff_report import CONTROLLER

LABEL_GAP_POINTS = 20.0
"""Points of the controller's curve that are nearer than this share a label."""

ORACLE = "oracle, which knows every outcome"


def tradeoff_figure(curves: Mapping[str, Curve], oracle: Curve | None = None) -> Figure:
    """Accuracy within budget against mean device time, and violations of feasible budgets by price.

    One line per policy through its points by price, and a single marker for a policy that ignores
    the price. The controller's prices are written beside its points. The oracle is a bound.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    all_prices = sorted({price for curve in curves.values() for price in curve.prices})
    for number, (name, curve) in enumerate(curves.items()):
        style = _style(number, name)
        _draw_curve(left, name, curve, style)
        _draw_violations(right, curve, all_prices, style)
    target = f"{100 * TARGET_VIOLATION:g} % (target)"
    right.axhline(TARGET_VIOLATION, color="grey", ls=":", lw=1.2, label=target)
    names = [*curves, target]
    if oracle is not None:
        style = {"color": "grey", "ls": "--", "lw": 1.2, "label": ORACLE}
        left.plot(oracle.time_ms_P, oracle.accuracy_P, **style)
        names.insert(len(curves), ORACLE)
    left.set(xlabel="mean device time (ms)", ylabel="accuracy within budget")
    left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    right.set(xlabel="price of time (0: time is free)", ylabel="violations of feasible budgets")
    right.set_xticks(range(len(all_prices)), [f"{price:g}" for price in all_prices])
    right.set_ylim(bottom=0)
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    _write_legend(figure, names)
    if CONTROLLER in curves:
        _write_prices(figure, left, curves[CONTROLLER])
    return figure


def _style(number: int, name: str) -> dict[str, Any]:
    if name == CONTROLLER:
        return {"color": "black", "lw": 2.4, "marker": "o", "ms": 5, "zorder": 4}
    return {"color": f"C{number % 10}", "lw": 1.3, "marker": "o", "ms": 3.5, "zorder": 3}


def _draw_curve(axes: Axes, name: str, curve: Curve, style: Mapping[str, Any]) -> None:
    error = curve.accuracy_ci_P if name == CONTROLLER else None
    times_P, accuracies_P = curve.time_ms_P, curve.accuracy_P
    if curve.ignores_price:
        # One marker that is large enough to be found without a line.
        single = {**style, "marker": "D", "ms": 6, "ls": "", "label": name}
        axes.plot(times_P[:1], accuracies_P[:1], **single)
        return
    axes.errorbar(times_P, accuracies_P, yerr=error, label=name, capsize=2, elinewidth=1, **style)


def _draw_violations(
    axes: Axes, curve: Curve, all_prices: list[float], style: Mapping[str, Any]
) -> None:
    """Prices are evenly spaced, because the lowest is 0 and the others are far apart."""
    if curve.ignores_price:
        ends = [0, max(len(all_prices) - 1, 1)]
        level = curve.violation_P[0]
        axes.plot(ends, [level, level], **{**style, "marker": "", "ls": "-.", "lw": 1.1})
        return
    axes.plot([all_prices.index(p) for p in curve.prices], curve.violation_P, **style)


def _write_legend(figure: Figure, names: list[str]) -> None:
    """Below both panels, in the order of the names; matplotlib would put error bars last."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        found, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, found, strict=True))
    below: Any = "outside lower center"  # the type stubs lack it
    shown = [handles[name] for name in names]
    num_columns = len(names) if len(names) < 5 else (len(names) + 1) // 2
    figure.legend(shown, names, loc=below, ncols=num_columns, fontsize=8, frameon=False)


def _write_prices(figure: Figure, axes: Axes, curve: Curve) -> None:
    """Writes the lowest price to the right of the curve's end, the others above to the left."""
    figure.draw_without_rendering()
    pixels_P2 = axes.transData.transform(np.stack([curve.time_ms_P, curve.accuracy_P], 1))
    gap = LABEL_GAP_POINTS * figure.dpi / 72
    groups = [[0]]
    for point in range(1, len(curve.prices)):
        if np.linalg.norm(pixels_P2[point] - pixels_P2[groups[-1][0]]) < gap:
            groups[-1].append(point)
        else:
            groups.append([point])
    for number, group in enumerate(groups):
        words = ", ".join(f"{curve.prices[point]:g}" for point in group)
        axes.annotate(
            words if number else f"price {words}",
            (curve.time_ms_P[group[0]], curve.accuracy_P[group[0]]),
            xytext=(-4, 5) if number else (5, 4),
            textcoords="offset points",
            ha="right" if number else "left",
            fontsize=8,
            zorder=5,
        )

"""Plots of a fitted latency estimator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rollout.estimator.latency_table import LatencyTable

PREDICTED = (("prefill", "prefill (ms)"), ("decode_per_token", "decode (ms per token)"))
TIER_NAMES = ("low", "medium", "high")


def plot_predictions(path: Path, table: LatencyTable, predicted_ms_N2: np.ndarray) -> None:
    """Plots predicted against measured latencies, prefill and decode apart, coloured by tier."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    for column, (_, label) in enumerate(PREDICTED):
        axes = figure.add_subplot(1, 2, column + 1)
        measured, predicted = table.targets_ms_N2[:, column], predicted_ms_N2[:, column]
        for tier, name in enumerate(TIER_NAMES):
            rows = table.inputs_N5[:, 2] == tier
            axes.plot(
                measured[rows], predicted[rows], ".", markersize=3, label=name, rasterized=True
            )
        ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.set(xlabel=f"measured {label}", ylabel=f"predicted {label}")
        axes.legend(title="tier", markerscale=3)
    FigureCanvasAgg(figure).print_png(path)


def plot_errors(path: Path, by_configuration: Mapping[str, Mapping[str, Any]]) -> None:
    """Plots the mean relative error of each configuration, prefill and decode apart."""
    names = list(by_configuration)
    height = max(3.0, 0.22 * len(names) + 1)
    figure = Figure(figsize=(10, height), layout="constrained")
    for column, (name, label) in enumerate(PREDICTED):
        axes = figure.add_subplot(1, 2, column + 1)
        errors = [100 * by_configuration[c][f"rel_error_{name}"] for c in names]
        axes.barh(names, errors)
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=7)
        axes.set(xlabel="mean relative error (%)", title=label)
    FigureCanvasAgg(figure).print_png(path)

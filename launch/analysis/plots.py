"""Plots, with matplotlib's object interface (no global state, no display)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from envs.spec import HEADS, TIERS


def pareto_figure(summary: Mapping[str, Any]) -> Figure:
    """Accuracy against median latency of all profiled configurations, with the Pareto front."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = summary["configurations"]
    for tier in TIERS:
        name = tier.name.lower()
        points = [r for key, r in rows.items() if key.startswith(name)]
        if points:
            axes.scatter(
                [r["median_ms"] for r in points],
                [r["accuracy"] for r in points],
                s=14,
                alpha=0.6,
                label=f"tier {name}",
            )
    ordered = sorted(rows.values(), key=lambda r: r["median_ms"])
    front = np.maximum.accumulate([r["accuracy"] for r in ordered])
    axes.step(
        [r["median_ms"] for r in ordered], front, where="post", color="black", lw=1, label="front"
    )
    axes.set_xlabel("median latency (ms)")
    axes.set_ylabel("accuracy")
    axes.set_title(f"{len(rows)} configurations, {summary['num_samples']} samples each")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def sweep_figure(budgets_ms: Sequence[float], rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy within budget, and violations of feasible budgets, one line per policy."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, row) in enumerate(rows.items()):
        is_ours = name == "controller"
        color = "black" if is_ours else f"C{number % 10}"
        style = {"lw": 2.4 if is_ours else 1.2, "color": color, "zorder": 3 if is_ours else 2}
        marker = "o" if is_ours else "."
        error = row.get("ci") if is_ours else None
        accuracy = row["in_budget_accuracy"]
        left.errorbar(budgets_ms, accuracy, yerr=error, marker=marker, capsize=2, **style)
        right.plot(
            budgets_ms, np.array(row["violation"], float), marker=marker, label=name, **style
        )
    left.set_ylabel("accuracy within budget")
    right.set_ylabel("violations of feasible budgets")
    right.axhline(0.05, color="grey", ls=":", lw=1, label="5 % (target)")
    for axes in (left, right):
        axes.set_xlabel("latency budget (ms)")
        axes.grid(alpha=0.3)
    beside: Any = "outside right"  # the type stubs lack it
    figure.legend(loc=beside, fontsize=8)
    return figure


def curves_figure(
    rows: Sequence[Mapping[str, Any]], levels: Mapping[str, float] | None = None
) -> Figure:
    """The curves of a run, from its metrics.jsonl; training as a running mean over 20 steps.

    `levels` are accuracies of other policies, which are drawn as lines.
    """
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    panels = {
        "reward, a violation costs 1": "reward",
        "accuracy within budget": "accuracy",
        "violations of feasible budgets": "violation",
    }
    *axes_of_panels, last = figure.subplots(1, 4)
    for axes, (title, name) in zip(axes_of_panels, panels.items(), strict=True):
        axes.plot(*_running_mean(rows, f"at_a_glance/{name}_sampled"), label="training, sampled")
        held_out = f"at_a_glance/{name}_held_out"
        pairs = [(row["step"] + 1, row[held_out]) for row in rows if held_out in row]
        axes.plot(*zip(*pairs, strict=True), "o-", label="held out, greedy")
        for number, (other, level) in enumerate((levels or {}).items() if "acc" in name else ()):
            axes.axhline(level, color=f"C{number + 2}", ls="--", lw=1, label=other)
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=7)
    prefix = "learner_entropy/"
    for name in sorted({name for row in rows for name in row if name.startswith(prefix)}):
        last.plot(*_running_mean(rows, name), label=name.removeprefix(prefix))
    last.set_title("entropy (nats)", fontsize=9)
    if last.lines:
        last.legend(fontsize=7)
    for axes in (*axes_of_panels, last):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    return figure


def _running_mean(
    rows: Sequence[Mapping[str, Any]], name: str, width: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean of the last `width` values at each step."""
    pairs = np.array([(row["step"] + 1, row[name]) for row in rows if name in row], float)
    if not len(pairs):
        return np.zeros(0), np.zeros(0)
    sums = np.concatenate([[0.0], np.cumsum(pairs[:, 1])])
    starts = np.maximum(np.arange(len(pairs)) + 1 - width, 0)
    counts = np.arange(len(pairs)) + 1 - starts
    return pairs[:, 0], (sums[1:] - sums[starts]) / counts


def latency_figure(budgets_ms: np.ndarray, latencies_ms_SK: np.ndarray) -> Figure:
    """Latency percentiles of a policy against its budget."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(budgets_ms, budgets_ms, color="grey", ls=":", label="budget")
    for quantile in (50, 95, 99):
        axes.plot(
            budgets_ms,
            np.percentile(latencies_ms_SK, quantile, axis=0),
            marker=".",
            label=f"p{quantile}",
        )
    axes.set_xlabel("latency budget (ms)")
    axes.set_ylabel("measured latency (ms)")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def choices_figure(budgets_ms: np.ndarray, actions_SK4: np.ndarray) -> Figure:
    """Mean choice of each head against budget."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    for column, (axes, head) in enumerate(zip(figure.subplots(1, len(HEADS)), HEADS, strict=True)):
        values_SK = np.array(head.amounts)[actions_SK4[..., column]]
        axes.plot(budgets_ms, values_SK.mean(0), marker=".")
        axes.fill_between(
            budgets_ms,
            np.percentile(values_SK, 10, axis=0),
            np.percentile(values_SK, 90, axis=0),
            alpha=0.2,
        )
        axes.set_title(head.title, fontsize=9)
        axes.set_xlabel("budget (ms)")
        axes.grid(alpha=0.3)
    return figure

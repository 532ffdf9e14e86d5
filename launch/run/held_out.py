"""Evaluates a run's weights on held-out samples while it trains."""

from __future__ import annotations

import time

from launch.analysis.greedy_sweep import GreedySweep, greedy_sweep
from launch.analysis.plots import choices_figure, latency_figure
from launch.run.state import Run


def evaluate(run: Run) -> None:
    """Evaluates the last step's weights greedily on held-out samples, and commits.

    The result is written before it is committed: an evaluation that is killed in between runs
    again, and its rows replace those of the killed one.
    """
    settings, started, step = run.config.evaluation, time.perf_counter(), run.next_step - 1
    run.commit()
    run.reporter.say(
        f"evaluating after step {step + 1}: {settings.num_samples} held-out samples, "
        f"{settings.num_budgets} budgets"
    )
    result = greedy_sweep(
        run.fleet,
        run.setup,
        run.learner.weights(),
        split="validation",
        indices=settings.indices,
        budgets_ms=run.setup.budgets.evenly(settings.num_budgets).tolist(),
    )
    _report(run, step, result, time.perf_counter() - started)
    run.evaluation_pending = False
    run.commit(metric=result.in_budget_accuracy)


def _report(run: Run, step: int, result: GreedySweep, seconds: float) -> None:
    scalars = {**result.scalars(), "time/evaluate_s": seconds}
    if run.best_table_accuracy:
        share = result.in_budget_accuracy / run.best_table_accuracy
        scalars["at_a_glance/share_of_best_table"] = share
    choices = choices_figure(result.budgets_ms, result.actions)
    latencies = latency_figure(result.budgets_ms, result.latencies_ms)
    run.reporter.scalars(step, scalars)
    run.reporter.figure(step, "evaluation/choices", choices)
    run.reporter.figure(step, "evaluation/latency", latencies)
    run.reporter.say(
        f"evaluation after step {step + 1}: in budget "
        f"{scalars['at_a_glance/accuracy_held_out']:.3f}, violations "
        f"{scalars['at_a_glance/violation_held_out']:.1%}"
    )

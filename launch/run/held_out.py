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
    price = run.config.price.deployed
    run.reporter.say(
        f"evaluating after step {step + 1}: {settings.num_samples} held-out samples, "
        f"{settings.num_budgets} budgets, price {price:g}"
    )
    result = greedy_sweep(
        run.fleet,
        run.setup,
        run.learner.weights(),
        split="validation",
        indices=settings.indices,
        budgets_ms=run.setup.budgets.evenly(settings.num_budgets).tolist(),
        price=price,
    )
    _report(run, step, result, time.perf_counter() - started)
    run.evaluation_pending = False
    spent = price * float(result.latencies_ms.mean()) / run.calibration.full_ms
    run.commit(metric=result.in_budget_accuracy - spent)


def _report(run: Run, step: int, result: GreedySweep, seconds: float) -> None:
    cost_per_ms = result.price / run.calibration.full_ms
    scalars = {**result.scalars(cost_per_ms), "time/evaluate_s": seconds}
    for name, level in run.rival_levels.items():
        scalars[f"at_a_glance/level_of_{name.replace(' ', '_')}"] = level
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

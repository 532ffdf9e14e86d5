"""Where a run stands at its end: its controller next to tables and the best static configuration.

All of them run on the devices of the run, in turns, on test samples that nothing else has used.
The rivals are chosen on a profile of the validation split.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from envs.calibration import Calibration
from envs.price_curve import PRICE_CURVE_NAME, PriceCurve
from envs.prices import FREE
from launch.analysis.greedy_sweep import greedy_sweeps
from launch.analysis.interleaved import Comparison, Live, curves_of, run_live
from launch.analysis.outcomes import outcome_on
from launch.analysis.plots import curves_figure, sweep_figure
from launch.analysis.rivals import ALL_RIVALS, RIVALS, SMALL_PROFILE, choose_rivals
from launch.analysis.tradeoff_plots import tradeoff_figure
from launch.analysis.tradeoff_report import CONTROLLER, tradeoff_table, verdict
from launch.run.state import Run
from launch.run_report.page import report_of_finished
from rollout.fingerprint import Fingerprint
from rollout.profiling.conversion import calibrated
from rollout.profiling.profile_table import ProfileTable


def comparable(
    profile: ProfileTable, fingerprint: Fingerprint, calibration: Calibration | None
) -> ProfileTable | None:
    """The profile in the run's ms; None, with a line in the log, if it does not fit the run."""
    try:
        if calibration is None:
            raise ValueError("latencies are simulated")
        profile.check_fingerprint(fingerprint, "the comparison profile", "this fleet")
        return calibrated(profile, calibration)
    except ValueError as error:
        logging.info("the run will not be compared with tables: %s", error)
        return None


def rival_levels(
    profile: ProfileTable | None, budgets_ms: np.ndarray, price: float, full_ms: float
) -> dict[str, float]:
    """Accuracy within budget of the tables at a price, on the profile that they are chosen on."""
    if profile is None:
        return {}
    found = choose_rivals(profile, budgets_ms, (price,), full_ms)
    return {
        words: outcome_on(profile, found[name], budgets_ms, price).accuracy
        for name, words in RIVALS.items()
        if name != "static"
    }


def finish(run: Run) -> None:
    """Evaluates on the test split, next to rivals if there is a profile, and draws both."""
    settings, folder = run.config.evaluation, run.store.root.parent
    budgets_ms = run.setup.budgets.evenly(settings.num_budgets)
    prices = settings.prices if run.setup.prices else (FREE,)
    run.reporter.say(
        f"final evaluation: {settings.num_test_samples} test samples, {len(budgets_ms)} budgets, "
        f"{len(prices)} prices"
    )
    if run.comparison is None:
        sweeps = greedy_sweeps(
            run.fleet,
            run.setup,
            run.learner.weights(),
            split="test",
            indices=range(settings.num_test_samples),
            budgets_ms=budgets_ms.tolist(),
            prices=prices,
        )
        live = {sweep.price: Live(result=sweep, rivals={}) for sweep in sweeps}
    else:
        live = compare(run, run.comparison, budgets_ms, prices)
        curves = curves_of(live)
        named = {CONTROLLER: curves[CONTROLLER]}
        named |= {words: curves[name] for name, words in ALL_RIVALS.items()}
        run.reporter.console.print(tradeoff_table(named))
        run.reporter.say(verdict(named))
        tradeoff_figure(named).savefig(folder / "tradeoff.png", dpi=110)
        shown = {name: row.to_json() for name, row in live[prices[0]].outcomes().items()}
        sweep_figure(budgets_ms.tolist(), shown).savefig(folder / "sweep.png", dpi=110)
    times_ms = [float(live[price].result.latencies_ms.mean()) for price in prices]
    PriceCurve.fitted(prices, times_ms).save(folder / PRICE_CURVE_NAME)
    first = live[prices[0]].result
    row = {
        "latency_source": run.reporter.label or "measured",
        "clock": run.calibration.clock,
        "prices": {str(price): one.to_json() for price, one in live.items()},
    }
    path = folder / "evaluation.json"
    path.write_text(json.dumps(row) + "\n")
    rows = run.reporter.rows()
    curves_figure(rows, run.rival_levels).savefig(folder / "curves.png", dpi=110)
    if run.rival_levels:
        run.reporter.say(rise(rows, run.rival_levels))
    report = report_of_finished(folder, PurePosixPath(run.uri).name)
    run.reporter.say(
        f"test split, price {first.price:g}: in budget {first.in_budget_accuracy:.3f}, violations "
        f"{first.violation_rate:.1%}  evaluation {path}  curves {folder / 'curves.png'}  "
        f"checkpoint {run.store.root}"
        + (f"  report {report}" if report else "")
        + (f"  and all of it in {run.uri}" if run.uri else "")
        + _left_out(run.fleet.stats.failed_samples)
    )


def rise(rows: Sequence[Mapping[str, Any]], levels: Mapping[str, float]) -> str:
    """After how many steps the held-out accuracy reached the level of each table, in words.

    Args:
        rows: scalars of the run's steps.
        levels: accuracy of each table at the same price, on the profile that it is chosen on.
    """
    name = "at_a_glance/accuracy_held_out"
    curve = [(int(row["step"]) + 1, float(row[name])) for row in rows if name in row]
    parts = []
    for table, level in levels.items():
        reached = next((step for step, accuracy in curve if accuracy >= level), None)
        words = "not reached" if reached is None else f"reached after {reached} steps"
        parts.append(f"level of the {table} ({level:.3f}) {words}")
    begun = f"from {curve[0][1]:.3f} after {curve[0][0]} steps" if curve else "not evaluated"
    return f"held-out accuracy: {begun}; {', '.join(parts)}"


def _left_out(num_samples: int) -> str:
    """What the last line says of samples that could not be used."""
    if not num_samples:
        return ""
    return f"  LEFT OUT: {num_samples} groups whose sample was unusable; the warnings say why"


def compare(
    run: Run, comparison: Comparison, budgets_ms: np.ndarray, prices: Sequence[float]
) -> dict[float, Live]:
    """Runs the controller and its rivals; the profile is in the run's calibrated ms."""
    whole, full_ms = comparison.profile, run.calibration.full_ms
    small = whole.rows(range(affordable_samples(whole, run.device_ms)))
    rivals = {
        prefix + name: table
        for prefix, profile in (("", whole), (SMALL_PROFILE, small))
        for name, table in choose_rivals(profile, budgets_ms, prices, full_ms).items()
        if prefix + name in ALL_RIVALS
    }
    return run_live(
        comparison.fleet,
        run.setup,
        run.learner.weights(),
        rivals,
        indices=range(run.config.evaluation.num_test_samples),
        budgets_ms=budgets_ms,
        prices=prices,
    )


SHARED_WORK = 0.6
"""Device time of profiling all configurations on a sample, over the sum of their latencies: work
that they have in common is done once."""


def affordable_samples(profile: ProfileTable, device_ms: float) -> int:
    """How many of a profile's samples cost as much device time as a training; at least one."""
    cost_ms = SHARED_WORK * float(profile.latencies_ms.sum(1).mean())
    return int(np.clip(round(device_ms / cost_ms), 1, len(profile.sample_ids)))

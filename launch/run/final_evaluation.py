"""Where a run stands at its end: its controller next to tables and the best static configuration.

All of them run on the devices of the run, in turns, on test samples that nothing else has used.
The rivals are chosen on a profile of the validation split.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import numpy as np
from rich.table import Table

from envs.calibration import Calibration
from launch.analysis.bounds import oracle_per_task
from launch.analysis.greedy_sweep import greedy_sweep
from launch.analysis.interleaved import Comparison, Live, run_live
from launch.analysis.outcomes import Outcome
from launch.analysis.plots import curves_figure, sweep_figure
from launch.analysis.rivals import TARGET_VIOLATION, choose_rivals
from launch.run.state import Run
from rollout.fingerprint import Fingerprint
from rollout.profiling.conversion import calibrated
from rollout.profiling.profile_table import ProfileTable

RIVALS = {
    "lookup by task": "lookup table per task",
    "lookup": "lookup table with a margin for each budget",
    "static": "best static configuration",
}


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


def best_table_accuracy(profile: ProfileTable | None, budgets_ms: np.ndarray) -> float | None:
    """Accuracy within budget of the best table per task and budget, in hindsight on the profile."""
    if profile is None:
        return None
    return oracle_per_task(profile, budgets_ms, max_violation=TARGET_VIOLATION).accuracy


def finish(run: Run) -> None:
    """Evaluates on the test split, next to rivals if there is a profile, and draws both."""
    settings, folder = run.config.evaluation, run.store.root.parent
    budgets_ms = run.setup.budgets.evenly(settings.num_budgets)
    found: dict[str, Outcome] = {}
    if run.comparison is None:
        result = greedy_sweep(
            run.fleet,
            run.setup,
            run.learner.weights(),
            split="test",
            indices=range(settings.num_samples),
            budgets_ms=budgets_ms.tolist(),
        )
    else:
        live = compare(run, run.comparison, budgets_ms)
        result, found = live.result, live.outcomes()
        run.reporter.console.print(standing_table(found))
        shown = {name: row.to_json() for name, row in found.items()}
        sweep_figure(budgets_ms.tolist(), shown).savefig(folder / "sweep.png", dpi=110)
    row = {
        "latency_source": run.reporter.label or "measured",
        "clock": run.calibration.clock,
        **result.to_json(),
        "rivals": {name: found[name].to_json() for name in RIVALS if name in found},
    }
    path = folder / "evaluation.json"
    path.write_text(json.dumps(row) + "\n")
    curves_figure(run.reporter.rows()).savefig(folder / "curves.png", dpi=110)
    run.reporter.say(
        f"test split: in budget {result.in_budget_accuracy:.3f}, violations "
        f"{result.violation_rate:.1%}  evaluation {path}  curves {folder / 'curves.png'}  "
        f"checkpoint {run.store.root}"
        + (f"  and all of it in {run.uri}" if run.uri else "")
        + _left_out(run.fleet.stats.failed_samples)
    )


def _left_out(num_samples: int) -> str:
    """What the last line says of samples that could not be used."""
    if not num_samples:
        return ""
    return f"  LEFT OUT: {num_samples} groups whose sample was unusable; the warnings say why"


def compare(run: Run, comparison: Comparison, budgets_ms: np.ndarray) -> Live:
    """Runs the controller and its rivals; the profile is in the run's calibrated ms."""
    found = choose_rivals(comparison.profile, budgets_ms)
    return run_live(
        comparison.fleet,
        run.setup,
        run.learner.weights(),
        {name: found[name] for name in RIVALS},
        range(run.config.evaluation.num_samples),
        budgets_ms,
    )


def standing_table(found: Mapping[str, Outcome]) -> Table:
    """One row per policy; leads are paired by sample, with 95 % intervals."""
    ours = found["controller"]
    table = Table("on the test split", "in budget", "the controller's lead", "violations")
    table.add_row("controller", f"{ours.accuracy:.3f}", "", f"{ours.violation_rate:.1%}")
    for name, words in RIVALS.items():
        row = found[name]
        lead = ours.ahead_of(row).signed()
        table.add_row(words, f"{row.accuracy:.3f}", lead, f"{row.violation_rate:.1%}")
    return table

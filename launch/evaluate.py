"""Evaluates a trained controller on held-out samples, against lookup tables and static choices.

    python launch/evaluate.py RUN_DIR --test T/table.npz [--validation V/table.npz]

Needs two profiles from launch/profile_knobs.py: one of the validation split, from which the lookup
tables are chosen (the shipped one by default), and one of the test split, on which all baselines
that do not run live are scored.

The clock of a shared machine drifts, so the devices are measured again first. The budgets span the
latencies measured now (unless the run's budgets were given by the user), and both the controller
and the validation profile are converted to the present clock. Controller and lookup tables then run
live and interleaved, a few samples at a time. A probe between these rounds measures how much the
devices have slowed down, and latencies are divided by that factor; the raw results are printed as
well. The latencies of the test profile are scaled by the ratio of the live lookups to their
profiled values.
"""

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import ray
import tyro
from rich.console import Console
from rich.table import Table

from launch.analysis import baselines
from launch.analysis.baselines import Outcome
from launch.analysis.greedy_sweep import GreedySweep, feasible_budgets
from launch.analysis.interleaved import Turn, clock_factor, clock_floor, run_in_turns
from launch.analysis.plots import choices_figure, latency_figure, sweep_figure
from launch.cluster.config import ClusterConfig
from launch.cluster.console import connect, one_clear_error, wide_console
from launch.cluster.fleet import open_fleet
from launch.run.recipes import SHIPPED_PROFILE
from launch.run.resume import (
    budgets_from_state,
    calibration_from_state,
    fingerprint_from_state,
    load_checkpoint,
    worker_of,
)
from learner.checkpoint import Checkpoint
from policy.config import PolicySetup
from policy.weights import weights_sha256
from rollout.actor import PublishedWeights
from rollout.build import WorkerConfig
from rollout.latency.calibration import Calibration, EndLatencies, recalibrated
from rollout.profiling.conversion import calibrated, scattered
from rollout.profiling.profile_table import ProfileTable

NOT_DRAWN = ("lookup", "lookup with margin", "tier only", "top-k only", "blocks only")
"""Policies left out of the plot, which shows both lookup tables as they ran live."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """One evaluation.

    Attributes:
        run_dir: folder of a training run. Its newest checkpoint is evaluated: figures from
            different hours, and so from different clocks, cannot tell which one was best.
        test: profile table of the test split, measured on this kind of machine.
        validation: profile table of the validation split.
        output_dir: folder for the results; RUN_DIR/evaluation by default.
        num_budgets: number of budgets, evenly spaced over the feasible range.
        num_samples: number of test samples; 0 means all that the test profile holds.
        worker: the frozen model and its tasks; those of the run by default.
        cluster: rollout actors and time limits.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    test: Path
    validation: Path = SHIPPED_PROFILE
    output_dir: Path | None = None
    num_budgets: int = 8
    num_samples: int = 0
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def load_tables(
    config: EvaluateConfig, checkpoint: Checkpoint
) -> tuple[ProfileTable, ProfileTable]:
    """The validation table, and the requested number of samples of the test table."""
    validation, test = ProfileTable.load(config.validation), ProfileTable.load(config.test)
    trained_on = fingerprint_from_state(checkpoint.state)
    if trained_on is not None:
        for path, table in ((config.validation, validation), (config.test, test)):
            table.check_fingerprint(trained_on, str(path), f"the run in {config.run_dir}")
    if validation.configurations != test.configurations:
        raise ValueError(
            f"{config.validation} and {config.test} hold different configurations: profile both "
            "splits with the same ones"
        )
    num_samples = min(config.num_samples or len(test.sample_ids), len(test.sample_ids))
    return validation, test.rows(np.arange(num_samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Raw measurements of one evaluation, and the tables behind them.

    Attributes:
        turns: rounds of interleaved measurements, uncorrected.
        columns: column that each lookup table chose at each budget.
        validation: the validation table, converted to the present clock.
        now: speed of the devices before the first round.
    """

    turns: list[Turn]
    columns: dict[str, list[int]]
    validation: ProfileTable
    now: Calibration


def sweep(
    config: EvaluateConfig, checkpoint: Checkpoint, validation: ProfileTable, num_samples: int
) -> Sweep:
    """Measures the devices, then runs controller and lookup tables on them."""
    connect(config.cluster.address)
    fleet = open_fleet(config.worker, config.cluster)
    trained_on = fingerprint_from_state(checkpoint.state)
    if trained_on is not None:
        trained_on.check_same(
            fleet.pool.first_facts().fingerprint,
            f"the run in {config.run_dir}",
            "this fleet",
            "evaluate with the run's own model, tasks and kind of device",
        )
    trained = calibration_from_state(checkpoint.state)
    now = EndLatencies.measure(fleet, trained.num_samples)
    setup = recalibrated(
        PolicySetup(
            controller=checkpoint.controller.config, budgets=budgets_from_state(checkpoint.state)
        ),
        trained,
        now,
        keeps_budgets=checkpoint.state["budgets"]["are_stated"],
    )
    budgets_ms = feasible_budgets(setup.budgets, config.num_budgets)
    validation = scattered(*calibrated(validation, now))
    arrays = checkpoint.controller.to_numpy()
    weights = PublishedWeights(version=0, sha256=weights_sha256(arrays), refs=(ray.put(arrays),))
    chosen = baselines.lookup_columns(validation, budgets_ms)
    columns = {name: chosen[name][0] for name in ("lookup", "lookup with margin")}
    choices = {name: [validation.configurations[c] for c in cs] for name, cs in columns.items()}
    turns = run_in_turns(fleet, setup, weights, choices, now, budgets_ms.tolist(), num_samples)
    fleet.shutdown()
    return Sweep(turns=turns, columns=columns, validation=validation, now=now.calibration)


def live_outcomes(turn: Turn) -> dict[str, Outcome]:
    """Outcomes of the policies that ran live, the controller first."""
    result = turn.result
    found = {"controller": baselines.outcome(result.scores, result.latencies_ms, result.budgets_ms)}
    for name, (scores, latencies) in turn.live.items():
        found[f"{name} (live)"] = baselines.outcome(scores, latencies, result.budgets_ms)
    return found


def collect_outcomes(
    turn: Turn, validation: ProfileTable, test: ProfileTable
) -> dict[str, Outcome]:
    """Outcomes of all policies: those that ran live, then those scored on the test table."""
    found, budgets = live_outcomes(turn), turn.result.budgets_ms
    for name, (columns, _) in baselines.lookup_columns(validation, budgets).items():
        found[name] = baselines.of_columns(test, columns, budgets)
    found |= baselines.named_statics(test, budgets)
    found["random"] = baselines.random_policy(test, budgets)
    found["oracle by budget"] = baselines.oracle_per_budget(test, budgets)
    found["oracle by sample"] = baselines.oracle_per_sample(test, budgets)
    return found


def in_words(found: dict[str, Outcome]) -> str:
    """Accuracy within budget and violations of each policy."""
    return "; ".join(
        f"{name} {outcome.accuracy:.3f}, violations {outcome.violation.max():.1%} at most, "
        f"{outcome.violation.mean():.1%} on average"
        for name, outcome in found.items()
    )


def verdict(found: dict[str, Outcome], test: ProfileTable, budgets_ms: np.ndarray) -> str:
    """Says whether the controller beats its rivals, and where it does not.

    Differences are paired by sample and come with 95 % intervals.
    """
    ours = found["controller"]
    fixed = baselines.static_policies(test, budgets_ms).values()
    rivals = {
        "every static configuration": max(fixed, key=lambda outcome: outcome.accuracy),
        "random": found["random"],
        "the lookup table with margin": found["lookup with margin (live)"],
    }
    parts = []
    for name, rival in rivals.items():
        ahead = ours.ahead_of(rival)
        word = "beats" if ahead.mean > 0 and ahead.excludes_zero else "DOES NOT BEAT"
        chance = "" if ahead.excludes_zero else ", within chance"
        parts.append(f"{word} {name} ({rival.accuracy:.3f}, {ahead.signed()}{chance})")
    return f"{in_words({'the controller': ours})}; it {', '.join(parts)}"


def print_table(found: dict[str, Outcome], budgets_ms: np.ndarray, console: Console) -> None:
    """Prints one row per policy: accuracy within budget / violation rate at every budget."""
    table = Table("policy", *(f"{b:.0f} ms" for b in budgets_ms), "mean")
    for name, row in found.items():
        cells = [
            f"{a:.2f} / {v:.0%}" for a, v in zip(row.in_budget_accuracy, row.violation, strict=True)
        ]
        table.add_row(name, *cells, f"{row.accuracy:.3f} / {row.violation.mean():.1%}")
    console.print(table)


def parse() -> tuple[EvaluateConfig, Checkpoint]:
    """Reads the command line; the run's own model and tasks are the defaults."""
    first = tyro.cli(EvaluateConfig, prog="evaluate.py", description=__doc__)
    checkpoint = load_checkpoint(first.run_dir)
    own = worker_of(checkpoint)
    config = tyro.cli(EvaluateConfig, prog="evaluate.py", default=replace(first, worker=own))
    return config, checkpoint


def main() -> int:
    """Runs the sweep, prints the table and the verdict, writes JSON and plots."""
    config, checkpoint = parse()
    validation, test = load_tables(config, checkpoint)
    measured = sweep(config, checkpoint, validation, len(test.sample_ids))
    raw, steady = measured.turns, Turn.joined([turn.without_drift() for turn in measured.turns])
    trained, now = calibration_from_state(checkpoint.state), measured.now
    factor = clock_factor(steady.live, measured.columns, test)
    clock = {
        **clock_floor(steady.repeats_ms),
        "slowest_turn": max(turn.slowdown for turn in raw),
        "fastest_turn": min(turn.slowdown for turn in raw),
        "sweep_over_test_table": factor,
        "cheapest_over_training": now.cheapest_ms / trained.cheapest_ms,
        "full_over_training": now.full_ms / trained.full_ms,
        "scatter": now.scatter,
        "scatter_in_training": trained.scatter,
    }
    # Policies from the table are judged on the clock on which the controller ran.
    test = replace(test, latencies_ms=test.latencies_ms * np.float32(factor))
    found = collect_outcomes(steady, measured.validation, test)
    budgets_ms = steady.result.budgets_ms
    console = wide_console()
    print_table(found, budgets_ms, console)
    console.print(verdict(found, test, budgets_ms))
    as_measured = live_outcomes(Turn.joined(raw))
    console.print(f"raw latencies, clock drift included: {in_words(as_measured)}")
    console.print("the clock: " + ", ".join(f"{k} {v:.3f}" for k, v in clock.items()))
    folder = config.output_dir or config.run_dir / "evaluation"
    found |= {f"{name}, as measured": outcome for name, outcome in as_measured.items()}
    write(folder, checkpoint, steady.result, found, clock)
    console.print(f"written to {folder}", markup=False)
    return 0


def write(
    folder: Path,
    checkpoint: Checkpoint,
    result: GreedySweep,
    found: dict[str, Outcome],
    clock: dict[str, float],
) -> None:
    """Writes all results as JSON, and three plots."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        name: {
            key: list(value) if isinstance(value, tuple) else np.asarray(value).tolist()
            for key, value in asdict(row).items()
        }
        for name, row in found.items()
    }
    content = {
        "checkpoint": checkpoint.path.name,
        "budgets_ms": result.budgets_ms.tolist(),
        "num_samples": len(result.scores),
        "policies": rows,
        "clock": clock,
        "controller_episodes": result.to_json(),
    }
    (folder / "evaluation.json").write_text(json.dumps(content) + "\n")
    shown = {
        name: row
        for name, row in rows.items()
        if name not in NOT_DRAWN and not name.endswith("as measured")
    }
    sweep_figure(result.budgets_ms.tolist(), shown, clock["exceeds_own_p95"]).savefig(
        folder / "sweep.png", dpi=120
    )
    latency_figure(result.budgets_ms, result.latencies_ms).savefig(folder / "latency.png", dpi=120)
    choices_figure(result.budgets_ms, result.actions).savefig(folder / "choices.png", dpi=120)


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

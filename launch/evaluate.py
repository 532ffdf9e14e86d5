"""Evaluates a trained controller on held-out samples, against lookup tables and static choices.

They are compared at several prices of time: how much device time each needs for its accuracy.

    python launch/evaluate.py RUN_DIR --test T/table.npz [--validation V/table.npz]

Needs two profiles from launch/profile_knobs.py: one of the validation split, on which all rivals
are chosen (the shipped one by default), and one of the test split, on which bounds are computed
that no policy can run, such as the best configuration of each sample in hindsight.

The samples that run are those of the test profile, and both are joined by the samples' ids: one
that can no longer be read is left out of both. Controller and rivals run live and interleaved, a
few samples at a time. All latencies and budgets are milliseconds of the run's calibration: probes
follow the speed of each device, and both profiles are converted. The cheapest configuration runs on
each sample several times, which determines the budgets that are feasible for it; violations count
feasible episodes only.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from envs.checks import check_within
from envs.prices import check_prices
from launch.cluster.config import ClusterConfig
from launch.cluster.console import check_first, check_local_paths
from launch.cluster.usage import options_from
from launch.run.recipes import SHIPPED_PROFILE, EvaluationConfig
from launch.storage.inputs import check_file, check_run, is_uri
from rollout.worker_config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """One evaluation.

    Attributes:
        run_dir: folder of a training run, as a path or URI. Its newest checkpoint is evaluated:
            figures from different hours, and so from different clocks, cannot tell which one was
            best.
        test: profile table of the test split, measured on this kind of machine.
        validation: profile table of the validation split.
        output_dir: folder for the results; RUN_DIR/evaluation by default.
        num_budgets: number of budgets, evenly spaced over the run's range.
        prices: ascending prices of time at which all are compared; only zero if the run was trained
            without prices.
        num_samples: number of test samples; 0 means all that the test profile holds.
        worker: the frozen model and its tasks; those of the run by default.
        cluster: rollout actors and time limits.
    """

    run_dir: Annotated[str, tyro.conf.Positional]
    test: Path
    validation: Path = SHIPPED_PROFILE
    output_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    num_budgets: int = 8
    prices: tuple[float, ...] = EvaluationConfig().prices
    num_samples: int = 0
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        check_within(self, "num_budgets", low=1)
        check_within(self, "num_samples", low=0)
        check_prices(self.prices, "prices")


def command_line() -> EvaluateConfig:
    """Reads the command line."""
    config = options_from(lambda: tyro.cli(EvaluateConfig, prog="evaluate.py", description=__doc__))
    check_local_paths(config)
    check_run(config.run_dir, "RUN-DIR")
    check_file(config.test, "--test")
    check_file(config.validation, "--validation")
    return config


if __name__ == "__main__":
    check_first(command_line)  # before the imports that take seconds

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from envs.prices import FREE
from launch.analysis import bounds
from launch.analysis.greedy_sweep import GreedySweep
from launch.analysis.interleaved import Live, run_live, table_factor
from launch.analysis.knob_table import KnobTable
from launch.analysis.outcomes import Outcome
from launch.analysis.plots import choices_figure, latency_figure, sweep_figure
from launch.analysis.rivals import TARGET_VIOLATION, choose_rivals
from launch.analysis.tradeoff import curves_of_outcomes
from launch.analysis.tradeoff_plots import tradeoff_figure
from launch.analysis.tradeoff_report import tradeoff_table, verdict
from launch.cluster.connection import connect
from launch.cluster.console import one_clear_error, wide_console
from launch.cluster.fleet import RayFleet, check_census, open_fleet
from launch.run.resume import (
    budgets_from_state,
    calibration_from_state,
    fingerprint_from_state,
    load_checkpoint,
    worker_of,
)
from launch.storage.outputs import writable_folder
from learner.checkpoint import Checkpoint
from policy.config import PolicySetup
from policy.weights import weights_sha256
from rollout.actor import PublishedWeights
from rollout.profiling.conversion import calibrated, places_in
from rollout.profiling.profile_table import ProfileTable

BY_BUDGET = "best by budget in hindsight"
BY_KIND = "best per task and budget in hindsight"
BY_SAMPLE = "best by sample in hindsight"
DRAWN = ("controller", "lookup", "lookup by task", "static", "random", BY_KIND, BY_SAMPLE)
"""Policies in the plot."""


def load_tables(
    config: EvaluateConfig, checkpoint: Checkpoint
) -> tuple[ProfileTable, ProfileTable]:
    """The validation table, and the requested number of samples of the test table.

    Both are converted to the run's calibrated milliseconds.
    """
    validation, test = ProfileTable.load(config.validation), ProfileTable.load(config.test)
    trained_on = fingerprint_from_state(checkpoint.state)
    if trained_on is not None:
        for path, table in ((config.validation, validation), (config.test, test)):
            table.check_fingerprint(trained_on, str(path), f"the run in {config.run_dir}")
    places_in("validation", validation, str(config.validation))
    places_in("test", test, str(config.test))
    if validation.configurations != test.configurations:
        raise ValueError(
            f"{config.validation} and {config.test} hold different configurations: profile both "
            "splits with the same ones"
        )
    num_samples = min(config.num_samples or len(test.sample_ids), len(test.sample_ids))
    to = calibration_from_state(checkpoint.state)
    return calibrated(validation, to), calibrated(test.rows(range(num_samples)), to)


def open_checked(config: EvaluateConfig, checkpoint: Checkpoint) -> RayFleet:
    """A fleet on the run's own model, tasks and kind of device; raises ValueError on another."""
    connect(config.cluster.address)
    fleet = open_fleet(config.worker, config.cluster)
    check_census(config.worker, fleet.pool.first_facts().census, "test")
    trained_on = fingerprint_from_state(checkpoint.state)
    if trained_on is not None:
        trained_on.check_same(
            fleet.pool.first_facts().fingerprint,
            f"the run in {config.run_dir}",
            "this fleet",
            "evaluate with the run's own model, tasks and kind of device",
        )
    return fleet


def published(checkpoint: Checkpoint) -> PublishedWeights:
    """The checkpoint's weights, for the fleet."""
    arrays = checkpoint.controller.to_numpy()
    return PublishedWeights(version=0, sha256=weights_sha256(arrays), refs=(ray.put(arrays),))


def measure(
    fleet: Any,
    setup: PolicySetup,
    weights: Any,
    rivals: dict[str, KnobTable],
    test: ProfileTable,
    *,
    budgets_ms: np.ndarray,
    prices: Sequence[float] = (FREE,),
) -> tuple[dict[float, Live], ProfileTable]:
    """Runs controller and rivals on the test profile's samples.

    Returns:
        What ran at each price and the profile, on the samples that both have. What is feasible in
        the profile is what was measured now.
    """
    places = places_in("test", test, "the test profile")
    ran = run_live(
        fleet, setup, weights, rivals, indices=places, budgets_ms=budgets_ms, prices=prices
    )
    joined = {price: live.on_the_samples_of(test) for price, live in ran.items()}
    first, table = joined[prices[0]]
    live = {price: one for price, (one, _) in joined.items()}
    return live, replace(table, cheapest_ms=np.median(first.result.cheapest_ms, axis=1))


def collect_outcomes(live: Live, test: ProfileTable, full_ms: float) -> dict[str, Outcome]:
    """Outcomes of the controller and its rivals, which ran live, and of bounds from the table."""
    found, budgets_ms = live.outcomes(), live.result.budgets_ms
    found["random"] = bounds.random_policy(test, budgets_ms)
    found |= bounds.named_statics(test, budgets_ms)
    found[BY_BUDGET] = bounds.oracle_per_budget(test, budgets_ms)
    found[BY_KIND] = bounds.oracle_per_task(
        test,
        budgets_ms,
        max_violation=TARGET_VIOLATION,
        cost_per_ms=live.result.price / full_ms,
    )
    found[BY_SAMPLE] = bounds.oracle_per_sample(test, budgets_ms)
    return found


def print_table(found: dict[str, Outcome], result: GreedySweep, console: Console) -> None:
    """Prints one row per policy: accuracy within budget / violation rate at every budget."""
    table = Table("policy", *(f"{b:.0f} ms" for b in result.budgets_ms), "mean")
    infeasible_K = 1 - result.feasible.mean(0)
    shares = (f"{share:.0%}" for share in infeasible_K)
    table.add_row("infeasible episodes", *shares, f"{infeasible_K.mean():.1%}", end_section=True)
    for name, row in found.items():
        cells = [
            f"{a:.2f} / {v:.0%}" for a, v in zip(row.in_budget_accuracy, row.violation, strict=True)
        ]
        table.add_row(name, *cells, f"{row.accuracy:.3f} / {row.violation_rate:.1%}")
    console.print(table)


def parse() -> tuple[EvaluateConfig, Checkpoint]:
    """Reads the command line; the run's own model and tasks are the defaults."""
    first = command_line()
    if is_uri(first.run_dir) and first.output_dir is None:
        raise ValueError(f"{first.run_dir} is in an object store: give a local --output-dir")
    checkpoint = load_checkpoint(first.run_dir)
    own = worker_of(checkpoint)
    default = replace(first, worker=own)
    config = options_from(lambda: tyro.cli(EvaluateConfig, prog="evaluate.py", default=default))
    return config, checkpoint


def clock_facts(live: Live, rivals: dict[str, KnobTable], test: ProfileTable) -> dict[str, float]:
    """How fast and how steady the devices were."""
    result = live.result
    log_SR = np.log(result.cheapest_ms)
    slowdowns = result.device_budgets_ms / result.budgets_ms
    return {
        "slowest": float(slowdowns.max()),
        "fastest": float(slowdowns.min()),
        "scatter of repeats": float(log_SR.var(1, ddof=1).mean() ** 0.5),
        "wall over clock": float(np.median(result.wall_ms / result.device_ms)),
        "live over test table": table_factor(live, rivals, test),
    }


def main() -> int:
    """Runs the sweep, prints the tables and the verdict, writes JSON and plots."""
    config, checkpoint = parse()
    folder = writable_folder(
        config.output_dir or Path(config.run_dir) / "evaluation", "--output-dir"
    )
    validation, test = load_tables(config, checkpoint)
    calibration = calibration_from_state(checkpoint.state)
    budgets = budgets_from_state(checkpoint.state)
    own = checkpoint.controller.config
    setup = PolicySetup(controller=own, budgets=budgets, calibration=calibration)
    budgets_ms = budgets.evenly(config.num_budgets)
    prices = config.prices if own.price_range else (FREE,)
    rivals = choose_rivals(validation, budgets_ms, prices, calibration.full_ms)
    fleet, asked = open_checked(config, checkpoint), len(test.sample_ids)
    weights = published(checkpoint)
    live, test = measure(fleet, setup, weights, rivals, test, budgets_ms=budgets_ms, prices=prices)
    fleet.shutdown()
    found = {p: collect_outcomes(one, test, calibration.full_ms) for p, one in live.items()}
    print_results(live, found, rivals)
    first = live[prices[0]]
    clock, console = clock_facts(first, rivals, test), wide_console()
    console.print(f"{len(test.sample_ids)} of {asked} samples of the test profile ran live")
    facts = ", ".join(f"{name} {value:.3f}" for name, value in clock.items())
    console.print(f"the clock, {calibration.clock}: {facts}", soft_wrap=True)
    write(folder, checkpoint, live, found, clock)
    console.print(f"written to {folder}", markup=False, soft_wrap=True)
    return 0


def print_results(
    live: Mapping[float, Live],
    found: Mapping[float, dict[str, Outcome]],
    rivals: Mapping[str, KnobTable],
) -> None:
    """Prints the table by budget at the lowest price, the comparison of curves and the verdict."""
    console, lowest = wide_console(), min(live)
    console.print(f"accuracy within budget / violations at price {lowest:g}:")
    print_table(found[lowest], live[lowest].result, console)
    curves = curves_of_outcomes(found)
    console.print(tradeoff_table({name: curves[name] for name in DRAWN}))
    ran = {name: curves[name] for name in ("controller", *rivals)}
    console.print(verdict(ran), soft_wrap=True)


def write(
    folder: Path,
    checkpoint: Checkpoint,
    live: Mapping[float, Live],
    found: Mapping[float, dict[str, Outcome]],
    clock: dict[str, float],
) -> None:
    """Writes all results as JSON, and four plots."""
    lowest = min(live)
    result = live[lowest].result
    content = {
        "checkpoint": checkpoint.path.name,
        "budgets_ms": result.budgets_ms.tolist(),
        "num_samples": len(result.scores),
        "clock_name": calibration_from_state(checkpoint.state).clock,
        "prices": {
            str(price): {
                "policies": {name: row.to_json() for name, row in found[price].items()},
                "controller_episodes": one.result.to_json(),
            }
            for price, one in live.items()
        },
        "clock": clock,
    }
    (folder / "evaluation.json").write_text(json.dumps(content) + "\n")
    curves = curves_of_outcomes(found)
    tradeoff_figure({n: curves[n] for n in DRAWN}).savefig(folder / "tradeoff.png", dpi=120)
    shown = {name: found[lowest][name].to_json() for name in DRAWN}
    sweep_figure(result.budgets_ms.tolist(), shown).savefig(folder / "sweep.png", dpi=120)
    latency_figure(result.budgets_ms, result.latencies_ms).savefig(folder / "latency.png", dpi=120)
    choices_figure(result.budgets_ms, result.actions).savefig(folder / "choices.png", dpi=120)


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

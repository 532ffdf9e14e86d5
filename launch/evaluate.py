"""A greedy sweep over budgets on held-out samples, against baselines read off a profile.

Needs two profiles made by launch/profile.py: one of the validation split, which the lookup tables
are read off (the shipped one by default), and one of the test split, which scores every baseline.
The clock of shared cores drifts. So the devices are measured anew: the budgets are what they span
now (unless the run's were stated), and controller and validation table are put on this clock alike;
the controller and the lookup tables run live, a few samples each in turn; and the test table is
scaled by how much slower or faster the lookups ran than it says.

python launch/evaluate.py RUN_DIR --test T/table.npz [--validation V/table.npz]
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder would come first, and its profile.py shadow the standard library's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import ray
import tyro
from rich.console import Console
from rich.table import Table

from envs.spec import FULL_KNOBS, Knobs
from launch import baselines
from launch.baselines import Outcome
from launch.calibration import Calibration, EndLatencies, calibrated, recalibrated, scattered
from launch.cluster import RayFleet
from launch.console import connect, one_clear_error, wide_console
from launch.evaluation import Evaluation, evaluate, feasible_budgets
from launch.plots import choices_figure, latency_figure, sweep_figure
from launch.recipes import SHIPPED_PROFILE, ClusterConfig
from launch.training import budgets_from_state, calibration_from_state
from learner.checkpoint import Checkpoint, CheckpointStore
from policy.weights import weights_sha256
from rollout.actor import PublishedWeights
from rollout.build import WorkerConfig, build_worker
from rollout.latency.profile_table import ProfileTable
from rollout.worker import PolicySetup

NOT_DRAWN = ("lookup", "lookup with margin", "tier only", "top-k only", "blocks only")
"""Policies that the table has and the plot leaves out; both lookups are drawn as run live."""

SAMPLES_A_TURN = 10
"""Samples after which controller, lookup tables and the clock's repeats take turns."""

REPEATS_A_TURN = 8
"""Runs of one fixed configuration in each turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """One evaluation.

    Attributes:
        run_dir: folder of a training run; its newest checkpoint is taken, because figures of
            different hours, and so of different clocks, do not tell which was the best.
        test: profile table of the test split, measured on this kind of machine.
        validation: profile table of the validation split.
        output_dir: where the table, JSON and plots go; RUN_DIR/evaluation by default.
        num_budgets: evenly spread over the feasible range.
        num_samples: samples of the test split; all of the test table by default.
        worker: the frozen model and its tasks.
        cluster: actors and limits.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    test: Path
    validation: Path = SHIPPED_PROFILE
    output_dir: Path | None = None
    num_budgets: int = 8
    num_samples: int = 0
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def load_checkpoint(run_dir: Path) -> Checkpoint:
    """The newest checkpoint of a run; raises ValueError if there is none."""
    if not (run_dir / "checkpoints").is_dir():
        raise ValueError(f"{run_dir} holds no checkpoints: give the run-dir of a training run")
    checkpoint = CheckpointStore(run_dir / "checkpoints").load_latest()
    if checkpoint is None:
        raise ValueError(f"{run_dir} holds no checkpoint yet: train first")
    return checkpoint


def _profile_call(handle: Any, *, configurations: tuple[Knobs, ...], split: str, index: int) -> Any:
    return handle.profile.remote(configurations, split, index)


def run_live(
    fleet: RayFleet, columns: dict[str, list[int]], table: ProfileTable, indices: range
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores and latencies [S, K] of lookup choices, run again on these test samples."""
    distinct = sorted({c for chosen in columns.values() for c in chosen})
    configurations = tuple(table.configurations[c] for c in distinct)
    calls = [
        functools.partial(_profile_call, configurations=configurations, split="test", index=index)
        for index in indices
    ]
    records = list(fleet.run_each(calls, "live lookups"))
    scores = np.array([[r.score for r in row] for row in records])
    latencies = np.array([[r.execution.latency_ms for r in row] for row in records])
    place = {column: position for position, column in enumerate(distinct)}
    return {
        name: (scores[:, [place[c] for c in chosen]], latencies[:, [place[c] for c in chosen]])
        for name, chosen in columns.items()
    }


def joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """One pair of scores and latencies of those of many samples."""
    scores, latencies = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(latencies)


def run_repeats(fleet: RayFleet) -> list[float]:
    """Latencies in ms of one fixed configuration on one sample."""
    calls = [
        functools.partial(_profile_call, configurations=(FULL_KNOBS,), split="test", index=0)
        for _ in range(REPEATS_A_TURN)
    ]
    return [records[0].execution.latency_ms for records in fleet.run_each(calls, "repeats")]


def run_in_turns(
    fleet: RayFleet,
    setup: PolicySetup,
    weights: PublishedWeights,
    columns: dict[str, list[int]],
    table: ProfileTable,
    budgets_ms: list[float],
    num_samples: int,
) -> tuple[Evaluation, dict[str, tuple[np.ndarray, np.ndarray]], list[float]]:
    """Controller, lookup choices and repeats, some samples each in turn: drift hits all alike."""
    swept, live, repeats = [], [], []
    for first in range(0, num_samples, SAMPLES_A_TURN):
        indices = range(first, min(first + SAMPLES_A_TURN, num_samples))
        swept.append(
            evaluate(
                fleet,
                setup,
                weights,
                split="test",
                num_samples=len(indices),
                budgets_ms=budgets_ms,
                first_index=first,
            )
        )
        live.append(run_live(fleet, columns, table, indices))
        repeats += run_repeats(fleet)
    choices = {name: joined([part[name] for part in live]) for name in columns}
    return Evaluation.joined(swept), choices, repeats


def clock_floor(latencies_ms: Sequence[float]) -> dict[str, float]:
    """How often one fixed configuration on one sample exceeds its own 95th percentile.

    The percentile is of one half of the runs, the rate of the other half: a perfect policy could
    do no better than this rate at a budget set to that percentile. The halves alternate twice a
    turn, so that every actor has a part in both.
    """
    runs = np.array(latencies_ms)
    is_second = np.arange(len(runs)) // (REPEATS_A_TURN // 2) % 2 == 1
    first, second = runs[~is_second], runs[is_second]
    return {
        "coefficient_of_variation": float(runs.std() / runs.mean()),
        "p95_over_p50": float(np.quantile(runs, 0.95) / np.median(runs)),
        "exceeds_own_p95": float((second > np.quantile(first, 0.95)).mean()),
    }


def clock_factor(
    live: dict[str, tuple[np.ndarray, np.ndarray]],
    columns: dict[str, list[int]],
    test: ProfileTable,
) -> float:
    """How much slower the sweep ran than the test table: median over what both have measured.

    `columns` are the test table's, for the same samples and budgets as the latencies in `live`.
    """
    ratios = [
        latencies / test.latencies_ms[:, columns[name]] for name, (_, latencies) in live.items()
    ]
    return float(np.median(np.stack(ratios)))


def collect_outcomes(
    result: Evaluation,
    live: dict[str, tuple[np.ndarray, np.ndarray]],
    validation: ProfileTable,
    test: ProfileTable,
) -> dict[str, Outcome]:
    """Every policy at every budget, the controller first."""
    budgets = result.budgets_ms
    found = {"controller": baselines.outcome(result.scores, result.latencies_ms, budgets)}
    for name, (scores, latencies) in live.items():
        found[f"{name} (live)"] = baselines.outcome(scores, latencies, budgets)
    for name, (columns, _) in baselines.lookup_columns(validation, budgets).items():
        found[name] = baselines.of_columns(test, columns, budgets)
    found |= baselines.named_statics(test, budgets)
    found["random"] = baselines.random_policy(test, budgets)
    found["oracle by budget"] = baselines.oracle_per_budget(test, budgets)
    found["oracle by sample"] = baselines.oracle_per_sample(test, budgets)
    return found


def verdict(found: dict[str, Outcome], test: ProfileTable, budgets_ms: np.ndarray) -> str:
    """Whether the controller beats what it must, in words; never silent about a miss.

    Differences are on the same samples, with 95 % intervals.
    """
    ours = found["controller"]
    statics = baselines.static_policies(test, budgets_ms).values()
    rivals = {
        "every static configuration": max(statics, key=lambda outcome: outcome.accuracy),
        "random": found["random"],
        "the lookup table with margin": found["lookup with margin (live)"],
    }
    parts = []
    for name, rival in rivals.items():
        ahead, error = ours.ahead_of(rival)
        if abs(ahead) <= error:
            word = "is within chance of"
        else:
            word = "beats" if ahead > 0 else "DOES NOT BEAT"
        parts.append(f"{word} {name} ({rival.accuracy:.3f}, {ahead:+.3f} ± {error:.3f})")
    worst = float(ours.violation.max())
    return (
        f"the controller ({ours.accuracy:.3f}) {', '.join(parts)}; violations {worst:.1%} at most, "
        f"{float(ours.violation.mean()):.1%} on average"
    )


def print_table(found: dict[str, Outcome], budgets_ms: np.ndarray, console: Console) -> None:
    """One row a policy: accuracy within budget / violation rate at every budget."""
    table = Table("policy", *(f"{b:.0f} ms" for b in budgets_ms), "mean")
    for name, row in found.items():
        cells = [
            f"{a:.2f} / {v:.0%}" for a, v in zip(row.in_budget_accuracy, row.violation, strict=True)
        ]
        table.add_row(name, *cells, f"{row.accuracy:.3f} / {row.violation.mean():.1%}")
    console.print(table)


def load_tables(config: EvaluateConfig) -> tuple[ProfileTable, ProfileTable]:
    """The validation table and as many samples of the test table as are asked for."""
    validation, test = ProfileTable.load(config.validation), ProfileTable.load(config.test)
    if validation.configurations != test.configurations:
        raise ValueError(
            f"{config.validation} and {config.test} hold different configurations: profile both "
            "splits with the same ones"
        )
    num_samples = min(config.num_samples or len(test.sample_ids), len(test.sample_ids))
    return validation, test.rows(np.arange(num_samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What was measured, and what it was measured with.

    Attributes:
        result: the controller's episodes.
        live: scores and latencies [S, K] of the lookup tables.
        columns: what the lookup tables chose at each budget.
        repeats_ms: latencies of one fixed configuration on one sample.
        validation: the validation table on the present clock.
        now: how fast the devices were.
    """

    result: Evaluation
    live: dict[str, tuple[np.ndarray, np.ndarray]]
    columns: dict[str, list[int]]
    repeats_ms: list[float]
    validation: ProfileTable
    now: Calibration


def sweep(
    config: EvaluateConfig, checkpoint: Checkpoint, validation: ProfileTable, num_samples: int
) -> Sweep:
    """Measures the devices, then runs controller and lookup tables on them."""
    connect(config.cluster.address)
    fleet = RayFleet(
        functools.partial(build_worker, config.worker),
        config.cluster,
        num_threads=config.worker.num_threads,
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
    result, live, repeats = run_in_turns(
        fleet, setup, weights, columns, validation, budgets_ms.tolist(), num_samples
    )
    fleet.shutdown()
    return Sweep(
        result=result,
        live=live,
        columns=columns,
        repeats_ms=repeats,
        validation=validation,
        now=now.calibration,
    )


def main() -> int:
    """Runs the sweep, prints the table and the verdict, writes JSON and plots."""
    config = tyro.cli(EvaluateConfig, prog="evaluate.py", description=__doc__)
    checkpoint = load_checkpoint(config.run_dir)
    validation, test = load_tables(config)
    measured = sweep(config, checkpoint, validation, len(test.sample_ids))
    trained, now = calibration_from_state(checkpoint.state), measured.now
    factor = clock_factor(measured.live, measured.columns, test)
    clock = {
        **clock_floor(measured.repeats_ms),
        "sweep_over_test_table": factor,
        "cheapest_over_training": now.cheapest_ms / trained.cheapest_ms,
        "full_over_training": now.full_ms / trained.full_ms,
        "scatter": now.scatter,
        "scatter_in_training": trained.scatter,
    }
    # The tables' policies are judged on the clock on which the controller ran.
    test = replace(test, latencies_ms=test.latencies_ms * np.float32(factor))
    found = collect_outcomes(measured.result, measured.live, measured.validation, test)
    budgets_ms = measured.result.budgets_ms
    console = wide_console()
    print_table(found, budgets_ms, console)
    console.print(verdict(found, test, budgets_ms))
    console.print("the clock itself: " + ", ".join(f"{k} {v:.3f}" for k, v in clock.items()))
    folder = config.output_dir or config.run_dir / "evaluation"
    write(folder, checkpoint, measured.result, found, clock)
    console.print(f"written to {folder}", markup=False)
    return 0


def write(
    folder: Path,
    checkpoint: Checkpoint,
    result: Evaluation,
    found: dict[str, Outcome],
    clock: dict[str, float],
) -> None:
    """JSON of everything and the three plots."""
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
    shown = {name: row for name, row in rows.items() if name not in NOT_DRAWN}
    sweep_figure(result.budgets_ms.tolist(), shown, clock["exceeds_own_p95"]).savefig(
        folder / "sweep.png", dpi=120
    )
    latency_figure(result.budgets_ms, result.latencies_ms).savefig(folder / "latency.png", dpi=120)
    choices_figure(result.budgets_ms, result.actions).savefig(folder / "choices.png", dpi=120)


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

"""Profiles configurations on held-out samples: accuracy and stage latencies.

    python launch/profile_knobs.py OUTPUT_DIR [--split test] [--run-dir RUN]

Writes table.npz (which evaluation and warm start read), summary.json, pareto.png, and one JSON file
per task and configuration (OUTPUT_DIR/results/TASK/CONFIGURATION.json) in the schema of the study
that first measured these knobs on MolmoE-1B-0924. A profile that was interrupted continues: samples
that are already measured are skipped.

The devices are calibrated first, and probed while the profile runs. Latencies in the table are
milliseconds of that calibration, so that a drifting clock does not favour what was measured when it
was fast. The cheapest configuration runs several times on each sample, which determines the
smallest budget that is feasible for it.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from envs.checks import check_within, did_you_mean
from envs.tasks.scene import check_split
from launch.cluster.config import ClusterConfig
from launch.cluster.console import check_first, check_local_paths
from launch.cluster.usage import options_from
from rollout.worker_config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """One profile.

    Attributes:
        output_dir: folder for the results; a profile that it already holds is continued.
        run_dir: training run, as a path or URI, whose model, tasks and settings are the defaults;
            a fleet that differs from the run's is refused.
        configurations: `all` (225), `grid` (27: all tiers, top-k 4, 6, 8, 12, 14, 16 blocks, p=1),
            `corners` (8), or names such as low-p1-k4-b12.
        split: split of the tasks: train, validation or test.
        num_samples: number of samples; each runs at every configuration.
        first_index: index of the first sample.
        calibration_samples: number of validation samples on which the devices are calibrated.
        worker: the frozen model and its tasks.
        cluster: rollout actors and time limits.
    """

    output_dir: Annotated[Path, tyro.conf.Positional]
    run_dir: str | None = None
    configurations: tuple[str, ...] = ("all",)
    split: str = "validation"
    num_samples: int = 200
    first_index: int = 0
    calibration_samples: int = 64
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        check_within(self, "num_samples", "calibration_samples", low=1)
        check_within(self, "first_index", low=0)
        check_split(self.split)


def command_line() -> ProfileConfig:
    """Reads the command line."""
    config = options_from(
        lambda: tyro.cli(ProfileConfig, prog="profile_knobs.py", description=__doc__)
    )
    check_local_paths(config)
    return config


if __name__ == "__main__":
    check_first(command_line)  # before the imports that take seconds

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from envs.calibration import Calibration
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, POSITIONS, TIERS, Knobs, all_knobs
from launch.analysis.answer_priors import answer_prior_scores
from launch.analysis.greedy_sweep import CHEAPEST_REPEATS
from launch.analysis.knob_effects import (
    best_by_task_table,
    configuration_name,
    effects_table,
    knob_effects,
)
from launch.analysis.plots import pareto_figure
from launch.analysis.statistics import Interval, half_widths
from launch.cluster.connection import connect
from launch.cluster.console import one_clear_error, wide_console
from launch.cluster.fleet import RayFleet, check_census, open_fleet
from launch.cluster.progress import counted
from launch.run.resume import fingerprint_from_state, load_checkpoint, worker_of
from launch.storage.outputs import writable_folder
from rollout.calibrate import ExtremeLatencies
from rollout.fingerprint import Fingerprint
from rollout.profiling.profile_table import ProfileTable
from rollout.profiling.records import ProfileRecord, write_items

SAMPLES_A_BATCH = 50
"""Number of samples that are handed out together."""


def chosen_configurations(names: Sequence[str]) -> tuple[Knobs, ...]:
    """The configurations of names or of a named set; raises ValueError for an unknown name."""
    every = {str(knobs): knobs for knobs in all_knobs()}
    grid = {"grid": ((4, 6, 8), (12, 14, 16)), "corners": ((4, 8), (12, 16))}
    if tuple(names) == ("all",):
        return tuple(every.values())
    if len(names) == 1 and names[0] in grid:
        top_ks, num_blocks = grid[names[0]]
        tiers = TIERS if names[0] == "grid" else (TIERS[0], TIERS[-1])
        return tuple(
            Knobs(tier=t, position=POSITIONS[0], top_k=k, num_blocks=n)
            for t in tiers
            for k in top_ks
            for n in num_blocks
        )
    unknown = [name for name in names if name not in every]
    if unknown or not names:
        raise ValueError(
            f"unknown configuration {unknown[0] if unknown else ''!r}: use all, grid, corners or "
            f"names such as {CHEAPEST_KNOBS}"
            + did_you_mean(unknown[0] if unknown else "", ("all", *grid, *every))
        )
    return tuple(every[name] for name in names)


def measure(config: ProfileConfig, configurations: tuple[Knobs, ...], rows_path: Path) -> None:
    """Appends one line per sample to `rows_path`, skipping samples that it already holds."""
    wanted = range(config.first_index, config.first_index + config.num_samples)
    names = [str(knobs) for knobs in configurations]
    done = set()
    for row in read_rows(rows_path):
        if [configuration_name(r) for r in row["records"]] != names or row["split"] != config.split:
            raise ValueError(
                f"{rows_path} holds other configurations or another split: use a new folder"
            )
        done.add(row["index"])
    missing = [index for index in wanted if index not in done]
    if not missing:
        return
    if rows_path.is_file() and not rows_path.read_bytes().endswith(b"\n"):
        # A killed run may have left half a line, which the next line must not continue.
        with rows_path.open("a") as file:
            file.write("\n")
    connect(config.cluster.address)
    fleet = open_fleet(config.worker, config.cluster)
    facts = fleet.pool.first_facts()
    check_census(config.worker, facts.census, config.split, "validation")
    common = {
        "split": config.split,
        "device": asdict(facts.facts),
        "fingerprint": facts.fingerprint.to_json(),
    }
    trained_on = config.run_dir and fingerprint_from_state(load_checkpoint(config.run_dir).state)
    if trained_on:
        run, cure = f"the run in {config.run_dir}", "profile the run's own model and tasks"
        trained_on.check_same(facts.fingerprint, run, "this fleet", cure)
    rows = read_rows(rows_path)
    for row in rows:
        Fingerprint.from_json(row["fingerprint"]).check_same(
            facts.fingerprint, str(rows_path), "this fleet", "profile into a new folder"
        )
    if rows:
        calibration = Calibration.from_json(rows[0]["calibration"])
    else:
        calibration = ExtremeLatencies.measure(fleet, config.calibration_samples).calibration
    common["calibration"] = asdict(calibration)
    results = _profiled(fleet, configurations, config.split, missing, calibration)
    with rows_path.open("a") as file:
        for index, (cheapest_ms, records) in zip(
            counted(missing, "profiled samples"), results, strict=True
        ):
            if len(records) < len(configurations):
                logging.warning("sample %d of %s is unusable: left out", index, config.split)
                continue
            row = {"cheapest_ms": cheapest_ms, "records": [r.to_json() for r in records]}
            file.write(json.dumps({"index": index, **common, **row}) + "\n")
            file.flush()
    fleet.shutdown()


def _profiled(
    fleet: RayFleet,
    configurations: tuple[Knobs, ...],
    split: str,
    indices: Sequence[int],
    calibration: Calibration,
) -> Iterator[tuple[list[float], list[ProfileRecord]]]:
    """Each sample's repeated latencies of the cheapest configuration, and all its records."""
    for first in range(0, len(indices), SAMPLES_A_BATCH):
        batch = indices[first : first + SAMPLES_A_BATCH]
        cheapest = fleet.cheapest_ms(split, batch, CHEAPEST_REPEATS, calibration).tolist()
        records = fleet.profile(configurations, split, batch, "profiled samples", calibration)
        yield from zip(cheapest, records, strict=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a profile; a torn last line is skipped."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_results(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes one file per task and configuration, in the profile JSON schema."""
    files: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for record in row["records"]:
            files[record["task"], configuration_name(record)].append(record)
    for (task, name), records in files.items():
        write_items(folder / task / f"{name}.json", records, rows[0]["device"])


def to_table(rows: Sequence[dict[str, Any]], split: str, config: WorkerConfig) -> ProfileTable:
    """The profile table of measured rows."""
    tasks = config.build_tasks()
    fingerprint = Fingerprint.from_json(rows[0]["fingerprint"])
    calibration = Calibration.from_json(rows[0]["calibration"])
    return ProfileTable.from_rows(
        [
            {
                "sample_id": row["records"][0]["sample_id"],
                "task": row["records"][0]["task"],
                "prompt": tasks.sample(split, row["index"]).prompt,
                "scores": {configuration_name(r): r["score"] for r in row["records"]},
                "latencies_ms": {configuration_name(r): r["calibrated_ms"] for r in row["records"]},
                "cheapest_ms": float(np.median(row["cheapest_ms"])),
            }
            for row in rows
        ],
        calibration,
        fingerprint,
    )


def summarise(table: ProfileTable) -> dict[str, Any]:
    """Accuracy with its 95 % interval, and latency quantiles, by configuration."""
    count = len(table.sample_ids)
    half_widths_C = half_widths(table.scores)
    return {
        "num_samples": count,
        "configurations": {
            str(knobs): {
                "accuracy": round(float(table.scores[:, c].mean()), 4),
                "accuracy_half_width": round(float(half_widths_C[c]), 4) if count > 1 else None,
                "median_ms": round(float(np.median(table.latencies_ms[:, c])), 3),
                "p95_ms": round(float(np.quantile(table.latencies_ms[:, c], 0.95)), 3),
                "by_task": {
                    task: round(float(table.only_task(task).scores[:, c].mean()), 4)
                    for task in sorted(set(table.tasks))
                },
            }
            for c, knobs in enumerate(table.configurations)
        },
    }


def answer_priors(rows: Sequence[dict[str, Any]], split: str, config: WorkerConfig) -> Any:
    """Accuracy of guessing and of the majority answer, overall and by task."""
    tasks = config.build_tasks()
    samples = [tasks.sample(split, row["index"]) for row in rows]
    names = np.array([sample.task for sample in samples])
    return {
        name: {
            "accuracy": round(float(scores.mean()), 4),
            "by_task": {
                task: round(float(scores[names == task].mean()), 4) for task in sorted(set(names))
            },
        }
        for name, scores in answer_prior_scores(tasks, samples).items()
    }


def _accuracy(row: dict[str, Any]) -> str:
    half_width = row["accuracy_half_width"]
    return str(Interval(row["accuracy"], float("nan") if half_width is None else half_width))


def print_table(summary: dict[str, Any], console: Console) -> None:
    """Prints the baselines, the Pareto front, and the cheapest and the full configuration."""
    rows = sorted(summary["configurations"].items(), key=lambda item: item[1]["median_ms"])
    best, front = -1.0, []
    for name, row in rows:
        is_end = name in (str(CHEAPEST_KNOBS), str(FULL_KNOBS))
        if row["accuracy"] > best or is_end:
            front.append((name, row))
        best = max(best, row["accuracy"])
    tasks = list(rows[0][1]["by_task"])
    table = Table("configuration", "median ms", "p95 ms", "accuracy", *tasks)
    for name, row in summary["baselines"].items():
        by_task = (f"{row['by_task'][task]:.2f}" for task in tasks)
        table.add_row(name, "", "", f"{row['accuracy']:.3f}", *by_task)
    for name, row in front:
        table.add_row(
            name,
            f"{row['median_ms']:.1f}",
            f"{row['p95_ms']:.1f}",
            _accuracy(row),
            *(f"{row['by_task'][task]:.2f}" for task in tasks),
        )
    console.print(table)


def parse() -> ProfileConfig:
    """Reads the command line; model and tasks of `--run-dir`, if given, are the defaults."""
    config = command_line()
    if config.run_dir is None:
        return config
    own = worker_of(load_checkpoint(config.run_dir))
    default = replace(config, worker=own)
    return options_from(lambda: tyro.cli(ProfileConfig, prog="profile_knobs.py", default=default))


def main() -> int:
    """Measures the missing samples and writes all results."""
    config = parse()
    configurations = chosen_configurations(config.configurations)
    writable_folder(config.output_dir, "OUTPUT_DIR")
    rows_path = config.output_dir / "rows.jsonl"
    measure(config, configurations, rows_path)
    rows = sorted(read_rows(rows_path), key=lambda row: row["index"])
    if not rows:
        raise ValueError(
            f"none of {config.num_samples} samples could be measured: the warnings before this say "
            "why"
        )
    write_results(rows, config.output_dir / "results")
    table = to_table(rows, config.split, config.worker)
    table.save(config.output_dir / "table.npz")
    effects = knob_effects(rows)
    summary = {"device": rows[0]["device"], "split": config.split, **summarise(table)}
    summary["baselines"] = answer_priors(rows, config.split, config.worker)
    if effects is not None:
        summary["knobs"] = asdict(effects)
    (config.output_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    pareto_figure(summary).savefig(config.output_dir / "pareto.png", dpi=120)
    console = wide_console()
    print_table(summary, console)
    console.print(best_by_task_table(table))
    if effects is not None:
        console.print(effects_table(effects))
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

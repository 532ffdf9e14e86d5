"""`joint_grpo.py doctor`: checks a cluster and names what would go wrong on it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import tyro
from rich.table import Table

from envs.checks import check_within
from envs.tasks.registry import check_names
from envs.tasks.vqa.config import DataConfig
from launch.cluster.console import connect, wide_console
from launch.cluster.data_page import lines, write_page
from launch.cluster.data_report import DataFinding, check_data
from launch.cluster.slots import last_line
from launch.cluster.versions import PACKAGES, package_versions, python_version

UPLOAD_LIMIT_MB = 100
PROBE_TIMEOUT_S = 60.0

DATA_TIMEOUT_S = 1800.0
"""Time limit for opening data sets, which may be downloaded first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig:
    """What to check besides the cluster of RAY_ADDRESS, if set.

    Attributes:
        tasks: data sets that every node has to have.
        data: where they are; the options of a run's --worker.data.
        show: number of questions per task that are written to a page with their pictures.
        show_page: the page.
    """

    tasks: tuple[str, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    show: int = 0
    show_page: Path = Path("data.html")

    def __post_init__(self) -> None:
        check_within(self, "show", low=0, high=100)


def facts_of_node() -> dict[str, Any]:
    """Python, package versions and GPUs of this node."""
    import torch

    found = {"host": platform.node(), "python": python_version(), **package_versions()}
    count = torch.cuda.device_count()
    found["gpus"] = ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or "none"
    return found


def working_folder_mb(folder: Path) -> float:
    """Size in MB of the upload by `ray job submit --working-dir`, without .git and runs."""
    skipped = {".git", "runs", "__pycache__", ".venv"}
    total = 0
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped]
        for name in files:
            with contextlib.suppress(OSError):  # it may be gone by now
                total += (Path(root) / name).lstat().st_size
    return total / 1e6


def doctor(arguments: list[str]) -> int:
    """Prints its findings; returns 1 if one of them would stop a run."""
    console = wide_console()
    config = tyro.cli(DoctorConfig, args=arguments, prog="joint_grpo.py doctor")
    if config.tasks:
        check_names(config.tasks, config.data)
    connect("")
    table, problems = Table("node", "python", *PACKAGES, "gpus"), []
    rows = [found for _, found in _on_every_node(facts_of_node, PROBE_TIMEOUT_S, problems)]
    for row in rows:
        table.add_row(row["host"], row["python"], *(row[name] for name in PACKAGES), row["gpus"])
    console.print(table)
    for name in ("python", *PACKAGES):
        found = {row[name] for row in rows}
        if len(found) > 1:
            problems.append(f"{name} differs between nodes: {', '.join(sorted(found))}")
    size_mb = working_folder_mb(Path.cwd())
    console.print(f"working folder: {size_mb:.0f} MB (uploads fail over {UPLOAD_LIMIT_MB})")
    if size_mb > UPLOAD_LIMIT_MB:
        problems.append("the working folder is too large to submit: move data and weights out")
    token = Path.home() / ".ray" / "auth_token"
    mode = os.environ.get("RAY_AUTH_MODE", "")
    console.print(f"auth token: {'present' if token.is_file() else 'none'}, RAY_AUTH_MODE={mode!r}")
    if token.is_file() and mode != "token":
        problems.append(
            f"{token} exists but RAY_AUTH_MODE is not `token`: if `ray job submit` fails with "
            "AuthenticationError, set it for the client too"
        )
    if config.tasks:
        for line in _data_lines(config, problems):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"problem: {problem}", style="red", markup=False)
    console.print("no problem found" if not problems else f"{len(problems)} problems found")
    return 1 if problems else 0


def _data_lines(config: DoctorConfig, problems: list[str]) -> Iterator[str]:
    """What each node found of the data sets; appends to the problems, and writes the page."""
    probe = functools.partial(check_data, config.tasks, config.data, config.show)
    first: list[DataFinding] = []
    for address, findings in _on_every_node(probe, DATA_TIMEOUT_S, problems):
        first = first or findings
        for found in findings:
            yield from lines(found, address)
            wrong = filter(None, (found.problem, *found.notes))
            problems.extend(f"node {address}: {problem}" for problem in wrong)
    if config.show and first:
        write_page(config.show_page, first)
        yield f"questions with their pictures: {config.show_page.resolve()}"


def _on_every_node(
    work: Callable[[], Any], limit_s: float, problems: list[str]
) -> Iterator[tuple[str, Any]]:
    """Runs a function on every node; yields addresses and results, appends to the problems."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe: Any = ray.remote(num_cpus=0)(lambda: work())
    refs = {
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        ).remote(): node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"]
    }
    for ref, address in refs.items():
        try:
            yield address, ray.get(ref, timeout=limit_s)
        except Exception as error:  # any failure of a node is a finding
            problems.append(f"node {address} did not answer: {last_line(error)}")

"""`joint_grpo.py doctor`: checks a cluster and reports what would fail on it."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from rich.console import Console
from rich.table import Table

from envs.tasks.registry import check_names
from launch.cluster.config import DoctorConfig
from launch.cluster.connection import MODE, access, connect
from launch.cluster.console import wide_console
from launch.cluster.data_page import lines, write_page
from launch.cluster.data_report import DataFinding, check_data
from launch.cluster.slots import WITHOUT_GPUS, last_line
from launch.cluster.upload_size import largest, uploaded_files
from launch.cluster.versions import PACKAGES, git_revision, package_versions, python_version
from launch.cluster.waiting import telling

UPLOAD_LIMIT_MB = 100
PROBE_TIMEOUT_S = 300.0

DATA_TIMEOUT_S = 1800.0
"""Time limit for opening data sets, which may be downloaded first."""


def facts_of_node() -> dict[str, Any]:
    """Python, package versions and GPUs of this node."""
    import torch

    found = {"host": platform.node(), "python": python_version(), **package_versions()}
    count = torch.cuda.device_count()
    found["gpus"] = ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or "none"
    return found


def learners_gpus() -> str:
    """What the learner's environment lets it see of this node's GPUs."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"CUDA_VISIBLE_DEVICES={visible!r}, {torch.cuda.device_count()} GPUs"


def doctor(config: DoctorConfig) -> int:
    """Prints its findings; returns 1 if one of them would stop a run."""
    console = wide_console()
    if config.tasks:
        check_names(config.tasks, config.data)
    mode = os.environ.get(MODE, "")  # before Ray, which sets it
    connect()
    table, problems = Table("node", "python", *PACKAGES, "gpus"), []
    rows = [found for _, found in _on_every_node(facts_of_node, PROBE_TIMEOUT_S, problems)]
    for row in rows:
        table.add_row(row["host"], row["python"], *(row[name] for name in PACKAGES), row["gpus"])
    console.print(table)
    for name in ("python", *PACKAGES):
        found = {row[name] for row in rows}
        if len(found) > 1:
            problems.append(f"{name} differs between nodes: {', '.join(sorted(found))}")
    remote: Any = ray.remote(num_cpus=0, runtime_env={"env_vars": WITHOUT_GPUS})
    with telling("the learner's environment"):
        try:
            gpus = ray.get(remote(learners_gpus).remote(), timeout=PROBE_TIMEOUT_S)
            console.print(f"learner: {gpus}")
        except GetTimeoutError:
            problems.append(
                f"no process for the learner started within {PROBE_TIMEOUT_S:.0f} s: see whether "
                "the head node is overloaded, or another job holds it"
            )
    console.print(f"revision: {git_revision()}")
    _check_upload(console, problems)
    _check_token(mode, console, problems)
    if config.tasks:
        for line in _data_lines(config, problems):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"problem: {problem}", style="red", markup=False, soft_wrap=True)
    counted = f"{len(problems)} problem{'' if len(problems) == 1 else 's'} found"
    console.print(counted if problems else "no problem found")
    return 1 if problems else 0


def _check_upload(console: Console, problems: list[str]) -> None:
    """Prints the size of an upload by `ray job submit --working-dir .`; appends to the problems."""
    files = uploaded_files(Path.cwd())
    size_mb = sum(files.values()) / 1e6
    console.print(f"working folder: {size_mb:.0f} MB (uploads over {UPLOAD_LIMIT_MB} MB fail)")
    if size_mb > UPLOAD_LIMIT_MB:
        problems.append(
            "the working folder is too large to submit: move data and weights out, or name them in "
            f".rayignore; the largest files: {largest(files)}"
        )


def _check_token(mode: str, console: Console, problems: list[str]) -> None:
    """Says whether the cluster demands a token, given our RAY_AUTH_MODE before Ray set it."""
    found = access(ray.get_runtime_context().gcs_address)
    is_open = found == "open"
    console.print(f"authentication: {'none' if is_open else 'token'}, RAY_AUTH_MODE={mode!r}")
    if is_open:
        problems.append(
            "the cluster demands no token: anyone who reaches its ports can run code; stop it, run "
            "`ray get-auth-token --generate` on the head node, copy ~/.ray/auth_token to all nodes "
            "and start them with RAY_AUTH_MODE=token"
        )
    elif mode != "token" and os.environ.get("RAY_ADDRESS"):
        problems.append(
            "the cluster demands a token and RAY_AUTH_MODE is not `token`: `ray job submit` will "
            "fail with AuthenticationError until it is"
        )


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
            with telling(f"node {address}, at most {limit_s:.0f} s"):
                found = ray.get(ref, timeout=limit_s)
            yield address, found
        except Exception as error:  # any failure of a node is a finding
            problems.append(f"node {address} did not answer: {last_line(error)}")

"""`joint_grpo.py doctor`: checks a cluster and names what would go wrong on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from launch.cluster.console import connect
from launch.cluster.versions import PACKAGES, package_versions, python_version

UPLOAD_LIMIT_MB = 100
PROBE_TIMEOUT_S = 60.0


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
        total += sum((Path(root) / name).lstat().st_size for name in files)
    return total / 1e6


def doctor(arguments: list[str]) -> int:
    """Prints its findings; returns 1 if one of them would stop a run."""
    console = Console()
    if arguments:
        console.print("doctor takes no options; it joins the cluster of RAY_ADDRESS, if set")
        return 2
    connect("")
    table, problems = Table("node", "python", *PACKAGES, "gpus"), []
    rows = _probe_nodes(problems)
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
    for problem in problems:
        console.print(f"problem: {problem}", style="red", markup=False)
    console.print("no problem found" if not problems else f"{len(problems)} problems found")
    return 1 if problems else 0


def _probe_nodes(problems: list[str]) -> list[dict[str, Any]]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe: Any = ray.remote(num_cpus=0)(facts_of_node)
    refs = {
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        ).remote(): node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"]
    }
    rows = []
    for ref, address in refs.items():
        try:
            rows.append(ray.get(ref, timeout=PROBE_TIMEOUT_S))
        except Exception as error:  # any failure of a node is a finding
            problems.append(f"node {address} did not answer: {type(error).__name__}")
    return rows

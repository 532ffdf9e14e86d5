"""This project's metrics of all nodes of a cluster, in Prometheus' text format."""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from collections.abc import Iterable

import ray

log = logging.getLogger(__name__)

EXPOSED_PREFIX = "ray_latency_budget_"
"""Begin of the names of this project's metrics, as Ray exposes them."""

NODE_TIMEOUT_S = 3.0
"""Time limit for one node's metrics."""


async def cluster_metrics() -> str:
    """Reads the metrics that Ray's agent exposes on every node; nodes out of reach are left out."""
    return await asyncio.to_thread(_read_all)


def _read_all() -> str:
    texts = []
    for node in ray.nodes():
        if node["Alive"] and node.get("MetricsExportPort"):
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            try:
                with urllib.request.urlopen(address, timeout=NODE_TIMEOUT_S) as response:
                    texts.append(response.read().decode())
            except OSError as error:
                log.warning("%s cannot be read: %s", address, error)
    return merged(texts)


def merged(texts: Iterable[str]) -> str:
    """Joins expositions, with each metric's lines together and other projects' left out."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for text in texts:
        comments: list[str] = []
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                if line.startswith("# HELP ") or name not in families:
                    comments, lines = families.setdefault(name, ([], []))
                if line not in comments:
                    comments.append(line)
            elif line and not line.startswith("#"):
                lines.append(line)
    ours = {name: parts for name, parts in families.items() if name.startswith(EXPOSED_PREFIX)}
    rows = [row for comments, lines in ours.values() for row in (*comments, *lines)]
    return "".join(f"{row}\n" for row in rows)

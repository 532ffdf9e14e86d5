"""Metrics of several nodes as one text, and the names in the dashboard."""

import json
import re
from pathlib import Path

from launch.serving.exposition import EXPOSED_PREFIX, merged

DOCS = Path(__file__).parents[3] / "docs"
SOURCES = ("launch/serving/metrics.py", "launch/run/run_metrics.py")

NODE = """\
# HELP ray_latency_budget_a_total Things.
# TYPE ray_latency_budget_a_total counter
ray_latency_budget_a_total{node="%s"} 1.0
# HELP ray_memory Other.
# TYPE ray_memory gauge
ray_memory 5.0
# HELP ray_latency_budget_b B.
# TYPE ray_latency_budget_b gauge
ray_latency_budget_b{node="%s"} 2.0
"""


def test_the_lines_of_a_metric_stand_together():
    assert merged([NODE % ("x", "x"), NODE % ("y", "y")]).splitlines() == [
        "# HELP ray_latency_budget_a_total Things.",
        "# TYPE ray_latency_budget_a_total counter",
        'ray_latency_budget_a_total{node="x"} 1.0',
        'ray_latency_budget_a_total{node="y"} 1.0',
        "# HELP ray_latency_budget_b B.",
        "# TYPE ray_latency_budget_b gauge",
        'ray_latency_budget_b{node="x"} 2.0',
        'ray_latency_budget_b{node="y"} 2.0',
    ]


def dashboard_names():
    """Names of the metrics in the dashboard's queries."""
    dashboard = json.loads((DOCS / "dashboard.json").read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    return {name for query in queries for name in re.findall(r"\bray_\w+", query)}


def test_the_dashboard_shows_every_metric_that_the_sources_declare():
    root, names = DOCS.parent, dashboard_names()
    declared = set()
    for source in SOURCES:
        text = (root / source).read_text().replace("{prefix}", "")
        prefix = re.search(r'"latency_budget_(serve|train)_"', text)[1]
        for kind, name in re.findall(r'(Counter|Gauge|Histogram)\(\s*f?"(\w+)"', text):
            bare = name.removeprefix("latency_budget_").removeprefix(f"{prefix}_")
            ending = {"Counter": "_total", "Gauge": "", "Histogram": "_bucket"}[kind]
            declared.add(f"{EXPOSED_PREFIX}{prefix}_{bare}{ending}")
    counts = {name for name in names if name.endswith("_count")}
    assert names - counts == declared
    assert {name.replace("_count", "_bucket") for name in counts} <= declared

"""A run's metrics as Prometheus reads them."""

import re
import time

import numpy as np
import pytest
import ray

from launch.cluster.connection import connect
from launch.run.run_metrics import RunMetrics
from launch.run.state import Stopwatch
from launch.serving.exposition import _read_all
from tests.launch.serving.test_exposition import dashboard_names

pytestmark = pytest.mark.slow


def group(rng):
    """Enough of a group of rollouts for its metrics."""

    class Group:
        feasible, budget_ms, group_size = True, 50.0, 4
        actions = np.array([[0, 0, 1, 2]] * 4)
        latencies_ms = rng.uniform(20, 90, 4)

    return Group()


def test_the_dashboards_metrics_of_a_run_are_exposed(monkeypatch):
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    ray.shutdown()
    connect("local", num_cpus=1)
    try:
        metrics = RunMetrics()
        watch = Stopwatch(on_part=metrics.enter)
        scalars = {"fleet/restarts": 1, "at_a_glance/accuracy_sampled": 0.5}
        metrics.step(6, [group(np.random.default_rng(0))], scalars)
        wanted = {name for name in dashboard_names() if "_train_" in name}
        with watch.part("learn"):
            deadline = time.monotonic() + 60
            while not wanted <= set(re.findall(r"^(ray_\w+)", text := _read_all(), re.MULTILINE)):
                assert time.monotonic() < deadline, text
                time.sleep(0.5)
        assert re.search(r'^ray_latency_budget_train_phase\{.*phase="learn".*\} 1', text, re.M)
        assert re.search(r"^ray_latency_budget_train_step\{.*\} 7", text, re.M)
        assert re.search(r"^ray_latency_budget_train_episodes_total\{.*\} 4", text, re.M)
    finally:
        ray.shutdown()

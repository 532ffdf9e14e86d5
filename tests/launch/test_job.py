"""`ray job submit` on a real head node: exit code, files, and `ray job stop`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import launch_rig
from tests.rollout import rig

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(tmp_path):
    """A head node of its own, under a HOME of its own."""
    home = tmp_path / "home"
    home.mkdir()
    port, dashboard = free_port(), free_port()
    sockets = tempfile.mkdtemp(prefix="ray")  # the paths of sockets must be short
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = os.pathsep.join([str(RAY.parent), environment.get("PATH", "")])
    environment |= {"HOME": str(home), "RAY_AUTH_MODE": "disabled", "PATH": path}
    started = subprocess.run(
        [
            *(RAY, "start", "--head", f"--port={port}", "--num-cpus=2"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *("--disable-usage-stats", f"--temp-dir={sockets}"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    yield environment
    subprocess.run([RAY, "stop", "--force"], env=environment, capture_output=True, timeout=60)
    shutil.rmtree(sockets, ignore_errors=True)


def submit(environment, working_dir, *arguments):
    return subprocess.run(
        [
            *(RAY, "job", "submit", "--working-dir", str(working_dir), "--"),
            *("python", "launch/joint_grpo.py", *arguments),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.slow
def test_a_job_runs_to_its_end_and_carries_its_exit_code(head, tmp_path):
    working_dir = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(working_dir)], check=True)
    shutil.rmtree(working_dir / ".git")
    model = tmp_path / "model"
    rig.write_model_folder(model)
    (model / "latency.json").write_text(json.dumps(dict(launch_rig.simulated().table_ms)))
    options = [
        *("embedded-scratch", "--steps", "2", "--groups-per-step", "2", "--group-size", "2"),
        *("--worker.model", str(model), "--worker.executor.max-new-tokens", "3"),
        *("--simulated-latency", str(model / "latency.json"), "--cluster.num-actors", "1"),
        *("--budget.low-ms", "5", "--budget.high-ms", "100", "--evaluation.num-samples", "1"),
    ]
    run_dir = tmp_path / "run"
    done = submit(head, working_dir, *options, "--run-dir", str(run_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    assert (run_dir / "evaluation.json").is_file()
    assert (run_dir / "checkpoints" / "latest").exists()
    refused = submit(head, working_dir, *options)
    assert refused.returncode != 0
    assert "absolute --run-dir" in refused.stdout + refused.stderr

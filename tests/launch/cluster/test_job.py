"""`ray job submit` on a real head node: exit code, files, and `ray job stop`."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from learner.checkpoint import CheckpointStore
from tests import launch_rig
from tests.rollout import rig

ROOT = Path(__file__).resolve().parents[3]
RAY = Path(sys.executable).with_name("ray")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def log_of(folder):
    return (folder / "head.log").read_text()


@pytest.fixture
def head(tmp_path):
    """A separate head node with its own HOME."""
    home = tmp_path / "home"
    home.mkdir()
    port, dashboard = free_port(), free_port()
    sockets = tempfile.mkdtemp(prefix="ray")  # the paths of sockets must be short
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = os.pathsep.join([str(RAY.parent), environment.get("PATH", "")])
    environment |= {"HOME": str(home), "RAY_AUTH_MODE": "disabled", "PATH": path}
    # Started blocking, so that only this node's processes are ended; `ray stop` ends all nodes.
    with (tmp_path / "head.log").open("w") as log:
        node = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=2"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *("--disable-usage-stats", f"--temp-dir={sockets}"),
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 300
    while ray_job(environment, "list").returncode != 0:
        assert node.poll() is None, log_of(tmp_path)
        assert time.monotonic() < deadline, log_of(tmp_path)
        time.sleep(1)
    yield environment
    processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)
    shutil.rmtree(sockets, ignore_errors=True)


def ray_job(environment, *arguments):
    """Runs one `ray job` command."""
    return subprocess.run(
        [RAY, "job", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture
def clone(tmp_path):
    """A clean clone of the project, and a model for it."""
    working_dir, model = tmp_path / "clone", tmp_path / "model"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(working_dir)], check=True)
    shutil.rmtree(working_dir / ".git")
    rig.write_model_folder(model)
    (model / "latency.json").write_text(json.dumps(dict(launch_rig.simulated().table_ms)))
    options = [
        *("python", "launch/joint_grpo.py", "embedded"),
        *("--groups-per-step", "2", "--group-size", "2", "--worker.model", str(model)),
        *("--worker.executor.max-new-tokens", "3", "--cluster.num-actors", "1"),
        *(
            "--simulated-latency",
            str(model / "latency.json"),
            "--evaluation.num-samples",
            "1",
            "--evaluation.num-test-samples",
            "1",
        ),
        *("--budget.low-ms", "5", "--budget.high-ms", "100", "--budget.num-samples", "4"),
    ]
    return ["submit", "--working-dir", working_dir], options


@pytest.mark.slow
def test_a_job_runs_to_its_end_and_carries_its_exit_code(head, clone, tmp_path):
    submit, options = clone
    run_dir = tmp_path / "run"
    done = ray_job(head, *submit, "--", *options, "--steps", 2, "--run-dir", run_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    assert (run_dir / "evaluation.json").is_file()
    assert (run_dir / "checkpoints" / "latest").exists()
    refused = ray_job(head, *submit, "--", *options, "--steps", 2)
    assert refused.returncode != 0
    assert "absolute --run-dir" in refused.stdout + refused.stderr


def last_step(rows):
    """The last step with a complete row; -1 before the first one."""
    lines = rows.read_text().splitlines(keepends=True) if rows.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=-1)


@pytest.mark.slow
def test_a_stopped_job_leaves_a_checkpoint_of_its_last_step(head, clone, tmp_path):
    submit, options = clone
    run_dir = tmp_path / "run"
    options += ["--steps", 100_000, "--checkpoint-every", 50_000, "--evaluation.every", 50_000]
    started = ray_job(
        head, *submit, "--no-wait", "--submission-id", "one", "--", *options, "--run-dir", run_dir
    )
    assert started.returncode == 0, started.stdout + started.stderr
    rows, deadline = run_dir / "metrics.jsonl", time.monotonic() + 300
    while last_step(rows) < 2:
        assert time.monotonic() < deadline, ray_job(head, "logs", "one").stdout
        time.sleep(0.1)
    stopped = ray_job(head, "stop", "one")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "'one' was stopped" in ray_job(head, "status", "one").stdout
    store = CheckpointStore(run_dir / "checkpoints")
    assert max(store.steps()) == last_step(rows) + 1 >= 3

"""The main command as a process: files, exit codes, one clear error, SIGTERM and SIGKILL."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learner.checkpoint import CheckpointStore
from policy.weights import weights_sha256
from tests import launch_rig
from tests.rollout import rig

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "joint_grpo.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    rig.write_model_folder(path)
    (path / "latency.json").write_text(json.dumps(dict(launch_rig.simulated().table_ms)))
    return path


def command(folder, run_dir, *extra, steps=8):
    return [
        *(sys.executable, str(SCRIPT), "embedded", "--run-dir", str(run_dir)),
        *("--steps", str(steps), "--groups-per-step", "2", "--group-size", "3"),
        *(
            "--checkpoint-every",
            "1",
            "--evaluation.num-samples",
            "1",
            "--evaluation.num-test-samples",
            "1",
        ),
        *("--evaluation.num-budgets", "2", "--worker.model", str(folder)),
        *("--worker.executor.max-new-tokens", "3", "--cluster.num-actors", "1"),
        *("--simulated-latency", str(folder / "latency.json")),
        *("--budget.low-ms", "20", "--budget.high-ms", "100"),
        *("--budget.num-samples", "4"),
        *extra,
    ]


def run(arguments, **options):
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=500, check=False, cwd="/", **options
    )


def final_weights(run_dir):
    checkpoint = CheckpointStore(run_dir / "checkpoints").load_latest()
    return checkpoint.state["next_step"], weights_sha256(checkpoint.controller.to_numpy())


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed")
    done = run(command(folder, run_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir, done.stdout


def test_a_run_writes_everything_and_names_its_latency_source(undisturbed):
    run_dir, output = undisturbed
    assert list((run_dir / "tensorboard").glob("events*"))
    assert json.loads((run_dir / "evaluation.json").read_text())["latency_source"].startswith(
        "SIMULATED LATENCY"
    )
    assert all("SIMULATED" in line for line in output.splitlines() if "step" in line)
    assert [int(step) for step in re.findall(r"step (\d)/8 .* left \d+ s$", output, re.M)] == [
        *range(1, 9)
    ]
    state = CheckpointStore(run_dir / "checkpoints").load_latest().state
    assert state["latency_source"].startswith("SIMULATED LATENCY")
    assert state["packages"]["torch"]
    page = (run_dir / "report.html").read_text()
    assert "SIMULATED LATENCY" in page
    assert "python launch/joint_grpo.py embedded --run-dir" in page
    assert "started once and never resumed" in page


@pytest.mark.slow
def test_a_run_that_sigterm_and_sigkill_end_resumes_to_the_same_weights(
    folder, undisturbed, tmp_path
):
    process = subprocess.Popen(
        command(folder, tmp_path, "--checkpoint-every", "1000"),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "step 3/" in line:
            break
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output = process.stdout.read()
    assert process.wait(timeout=200) == 143
    assert "checkpoint written" in output
    newest = max((tmp_path / "checkpoints").glob("step_*/manifest.json"), key=os.path.getmtime)
    assert newest.stat().st_mtime - time.time() + time.monotonic() - sent < 3
    stopped_at = final_weights(tmp_path)[0]
    assert 3 <= stopped_at < 8

    process = subprocess.Popen(
        command(folder, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    store = CheckpointStore(tmp_path / "checkpoints")
    deadline = time.monotonic() + 300
    while max(store.steps()) == stopped_at and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert stopped_at < max(store.steps()) < 8
    assert run(command(folder, tmp_path)).returncode == 0
    assert final_weights(tmp_path) == final_weights(undisturbed[0])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--group-size", "1"), "group_size is 1: give at least 2"),
        (("--worker.model", "/nowhere"), "/nowhere is not a folder"),
        (("--simulated-latency", "/nowhere.json"), "/nowhere.json does not exist"),
    ],
)
def test_mistakes_are_one_clear_line(folder, tmp_path, extra, message):
    done = run(command(folder, tmp_path, *extra))
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_shard_that_the_index_promises_and_nobody_has_is_found_before_ray(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    done = run(command(tmp_path / "model", tmp_path / "run"))
    assert done.returncode == 1
    assert "model-00002-of-00002.safetensors is missing" in done.stderr
    assert "Ray" not in done.stdout


def test_unknown_options_are_refused_with_the_nearest_name(folder, tmp_path):
    done = run([sys.executable, str(SCRIPT), "embedded", "--group-sizes", "8"])
    assert done.returncode == 2
    assert "--group-size" in done.stderr + done.stdout


def test_print_config_shows_the_whole_tree():
    done = run([sys.executable, str(SCRIPT), "molmoe-h100", "--print-config", "--seed", "7"])
    config = json.loads(done.stdout)
    assert config["seed"] == 7
    assert config["budget"]["high_ms"] is None, "budgets are measured"
    assert config["worker"]["model"] == "allenai/MolmoE-1B-0924"


def test_run_folders_that_do_not_last_are_refused(monkeypatch, tmp_path):
    from launch.storage.run_folder import resolve_run_dir

    job = tmp_path / "working_dir_files" / "pkg"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    for run_dir in ("", "runs/x", str(job / "runs")):
        with pytest.raises(ValueError, match=r"absolute|outside"):
            resolve_run_dir(run_dir)
    assert resolve_run_dir(str(tmp_path / "kept")) == tmp_path / "kept"

"""SIGKILL of the driver and of the learner at random moments, with a recipe's own settings.

Only the model, the latency source and the amount of work are the test's: what is committed, and
when, is what a user gets.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from learner.checkpoint import CheckpointStore
from policy.weights import weights_sha256
from tests import launch_rig
from tests.rollout import rig

SCRIPT = Path(__file__).resolve().parents[3] / "launch" / "joint_grpo.py"
STEPS = 12
NUM_KILLS = 2
EVALUATIONS = (
    "--evaluation.every",
    "6",
    "--evaluation.num-samples",
    "20",
    "--evaluation.num-test-samples",
    "20",
)
STARTS = re.compile(r"(?:resumes at|starts with) step (\d+)")
DONE = re.compile(r"step (\d+)/")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    rig.write_model_folder(path)
    (path / "latency.json").write_text(json.dumps(dict(launch_rig.simulated().table_ms)))
    return path


@pytest.fixture(scope="module")
def staleness():
    """A batch is in flight when a process dies; tests/launch/test_cli.py kills without one."""
    return 1


@pytest.fixture(scope="module")
def undisturbed(folder, staleness, tmp_path_factory):
    """The folder of a whole run, with the evaluations that a test below interrupts."""
    run_dir = tmp_path_factory.mktemp(f"undisturbed{staleness}")
    process = start(folder, run_dir, staleness, *EVALUATIONS)
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return run_dir


def start(folder, run_dir, staleness, *more):
    arguments = [
        *(sys.executable, str(SCRIPT), "embedded", "--run-dir", str(run_dir)),
        *("--steps", str(STEPS), "--groups-per-step", "6", "--max-staleness", str(staleness)),
        *("--worker.model", str(folder), "--worker.executor.max-new-tokens", "3"),
        *(
            "--simulated-latency",
            str(folder / "latency.json"),
            "--evaluation.num-samples",
            "2",
            "--evaluation.num-test-samples",
            "2",
        ),
        *("--budget.num-samples", "4"),
        *more,
    ]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
    )


def final_weights(run_dir):
    checkpoint = CheckpointStore(run_dir / "checkpoints").load_latest()
    assert checkpoint.state["next_step"] == STEPS
    return weights_sha256(checkpoint.controller.to_numpy())


def read_until(process, pattern):
    """The number in the first line that matches; fails if the process ends before."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if match := pattern.search(line):
            return int(match[1])
    raise AssertionError("".join(seen))


def last_reported_step(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return max((row["step"] for row in rows), default=-1)


def test_a_killed_driver_does_at_most_one_step_again(folder, staleness, undisturbed, tmp_path):
    rng = np.random.default_rng(staleness)
    process = start(folder, tmp_path, staleness)
    read_until(process, DONE)
    time.sleep(float(rng.uniform(0, 1.5)))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    reported = last_reported_step(tmp_path)
    process = start(folder, tmp_path, staleness)
    first = read_until(process, STARTS)
    assert first - 1 >= reported, f"step {reported + 1} was reported, and it starts at {first}"
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert final_weights(tmp_path) == final_weights(undisturbed)


def learner_of(process):
    """The learner's actor, a child of the raylet that the driver started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "LearnerActor" in " ".join(child.cmdline()):
                return child
    return None


def test_a_killed_learner_costs_no_step(folder, staleness, undisturbed, tmp_path):
    rng = np.random.default_rng(10 + staleness)
    process = start(folder, tmp_path, staleness)
    lines, kills = [], 0
    for line in process.stdout:
        lines.append(line)
        if DONE.search(line) and kills < NUM_KILLS:
            time.sleep(float(rng.uniform(0, 0.7)))
            learner = learner_of(process)
            if learner is not None:
                os.kill(learner.pid, signal.SIGKILL)
                kills += 1
    output = "".join(lines)
    assert process.wait(timeout=60) == 0, output
    assert kills == NUM_KILLS
    assert output.count("continues where the last update left off") >= 1
    steps = [int(number) for number in DONE.findall(output)]
    assert steps == list(range(1, STEPS + 1)), "every step was done once"
    assert final_weights(tmp_path) == final_weights(undisturbed)


def held_out(run_dir):
    """Figures of every evaluation, those of time left out."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "at_a_glance/accuracy_held_out" in row]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_evaluations_that_signals_end_are_made_up_for(folder, staleness, undisturbed, tmp_path):
    """One by SIGKILL, and the last one by SIGTERM."""
    for step, number in ((6, signal.SIGKILL), (12, signal.SIGTERM)):
        process = start(folder, tmp_path, staleness, *EVALUATIONS)
        read_until(process, re.compile(rf"evaluating after step ({step}):"))
        time.sleep(0.5)
        process.send_signal(number)
        process.communicate(timeout=120)
        checkpoint = CheckpointStore(tmp_path / "checkpoints").load_latest()
        assert checkpoint.step == step
        assert checkpoint.state["evaluation_pending"]
    process = start(folder, tmp_path, staleness, *EVALUATIONS)
    assert process.wait(timeout=600) == 0, process.stdout.read()
    assert held_out(tmp_path) == held_out(undisturbed)
    assert [row["step"] for row in held_out(tmp_path)] == [-1, 4, 5, 11]

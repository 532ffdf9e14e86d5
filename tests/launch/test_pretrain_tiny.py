"""Training of the small model as a process: Ray Train workers, one of them killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout.molmoe import Preprocessor, load_model

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 480

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 60)]


def processes():
    """Maps the pid of each running process to its parent's pid and its command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(folder.name)] = parent, (folder / "cmdline").read_bytes().decode()
            except (OSError, UnicodeDecodeError):
                continue
    return found


def train_workers(driver_pid):
    """Pids of the driver's Ray Train workers, without their data loaders of the same name."""
    running = processes()
    named = {pid for pid, (_, line) in running.items() if "RayTrainWorker" in line}

    def descends(pid):
        while pid in running:
            if pid == driver_pid:
                return True
            pid = running[pid][0]
        return False

    return sorted(pid for pid in named if running[pid][0] not in named and descends(pid))


def test_a_killed_worker_costs_the_steps_since_the_checkpoint(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    stages = {"vision": 0, "text": 2, "joint": 12, "experts": 2}
    steps = [a for name, n in stages.items() for a in (f"--{name}.steps", str(n))]
    command = [sys.executable, str(ROOT / "launch" / "pretrain_tiny.py"), "--out", str(out), *steps]
    command += ["--checkpoint-steps", "2", "--log-steps", "1", "--num-samples", "1"]
    with log.open("w") as file:
        driver = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd="/")
        try:
            until = time.monotonic() + LIMIT_S
            while "joint 4/12" not in log.read_text() and time.monotonic() < until:
                assert driver.poll() is None, log.read_text()
                time.sleep(0.2)
            victims = train_workers(driver.pid)
            assert len(victims) == 2, log.read_text()
            os.kill(victims[1], signal.SIGKILL)
            code = driver.wait(until - time.monotonic())
        finally:
            driver.kill()
    printed = log.read_text()
    assert code == 0, printed
    resumed = [line for line in printed.splitlines() if "resumed from" in line]
    assert "stage 2, step" in resumed[0]
    assert "mixture" in printed
    model = load_model(out / "model")
    assert model.config.num_experts == 16
    assert Preprocessor.from_pretrained(out / "model") is not None

"""The Slurm script in docs/cluster.md, under stand-ins that record how they are called."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "cluster.md").read_text()
SCRIPT = re.search(r"## Slurm\n\n```sh\n(.*?)```", TEXT, re.DOTALL)[1]

RECORD = 'echo "$(basename "$0") $*" >> "$CALLS"\n'
STANDINS = {
    "scontrol": 'for i in $(seq "$SLURM_NNODES"); do echo "node$i"; done\n',
    "srun": (
        'case "$*" in *"hostname -I"*) echo "10.0.0.1 172.16.0.1 ";; *) exec sleep 300;; esac\n'
    ),
    "ray": 'case "$1" in health-check) [ ! -e "$DOWN" ];; esac\n',
    "python": (
        'echo "environment $RAY_ADDRESS $RAY_AUTH_MODE" >> "$CALLS"\n'
        'case "$PROGRAM" in\n'
        "  waits) trap 'echo checkpoint >> \"$CALLS\"; exit 143' TERM\n"
        '         echo started >> "$CALLS"; while :; do sleep 0.1; done;;\n'
        # The script starts Ray in the background, and ends it with the program.
        '  *) for _ in $(seq 300); do [ "$(grep -c "ray start" "$CALLS")" -ge "$RAYS" ] && break\n'
        "       sleep 0.1; done; exit 7;;\n"
        "esac\n"
    ),
}


@pytest.fixture
def job(tmp_path):
    """Starts the script as Slurm would; returns the process and what was called so far."""
    for name, body in STANDINS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/bash\n" + RECORD + body)
        path.chmod(0o755)
    script, calls = tmp_path / "job.sh", tmp_path / "calls"
    script.write_text(SCRIPT)
    calls.touch()
    started = []

    def start(num_nodes, **environment):
        process = subprocess.Popen(
            ["bash", str(script)],
            env={
                **{"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls)},
                **{"SLURM_NNODES": str(num_nodes), "SLURM_JOB_NODELIST": "node[1-4]"},
                **{"SLURM_CPUS_PER_TASK": "32", "SCRATCH": "/scratch", "HOME": str(tmp_path)},
                **{"RAYS": str(1 + (num_nodes > 1)), "DOWN": str(tmp_path / "down")},
                **{"PROGRAM": "fails", **environment},
            },
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process, lambda: calls.read_text().splitlines()

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
def test_every_node_gets_one_ray_and_the_program_waits_for_all(job, num_nodes):
    process, calls = job(num_nodes)
    assert process.wait(timeout=60) == 7, "the program's own exit code"
    found = calls()
    assert "ray get-auth-token --generate" in found[0]
    (head,) = [line for line in found if "ray start --head" in line]
    assert "srun --nodes=1 --ntasks=1 --cpus-per-task=32 -w node1" in head
    assert "--node-ip-address=10.0.0.1" in head
    assert "--dashboard-host=127.0.0.1" in head
    workers = [line for line in found if "ray start --address=10.0.0.1:6379" in line]
    assert len(workers) == (num_nodes > 1)
    for line in workers:
        others = num_nodes - 1
        assert f"srun --nodes={others} --ntasks={others} --cpus-per-task=32" in line
        assert "--exclude=node1" in line
    (program,) = [line for line in found if line.startswith("python ")]
    assert program.endswith(f"--run-dir /scratch/runs/one --cluster.num-nodes {num_nodes}")
    assert "environment 10.0.0.1:6379 token" in found


def test_slurms_signal_reaches_the_program_and_the_script_waits_for_it(job):
    assert "#SBATCH --signal=B:TERM@120" in SCRIPT
    process, calls = job(2, PROGRAM="waits")
    deadline = time.monotonic() + 60
    while "started" not in calls() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert "checkpoint" in calls()


def test_a_head_node_that_never_answers_ends_the_job_with_a_message(job, tmp_path):
    (tmp_path / "down").touch()
    process, calls = job(2, START_LIMIT_S="1")
    assert process.wait(timeout=60) == 1
    assert "Ray's head node on node1 did not answer within 1 s" in process.stderr.read()
    assert not [line for line in calls() if line.startswith("python")]

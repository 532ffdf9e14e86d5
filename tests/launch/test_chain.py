"""The whole chain of commands on a model in the published layout, at reduced width.

From a folder and from a hub cache: importance, profile, training with a kill and a resume,
evaluation, one answer.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from learner.checkpoint import CheckpointStore
from tests.published_layout import write_hub_cache, write_model

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
REPO = "someone/MolmoE-narrow"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class Chain:
    """Runs commands on one model in one environment."""

    def __init__(self, model, environment, folder):
        self.model, self.folder = str(model), folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}

    def arguments(self, program, *arguments):
        return [sys.executable, str(LAUNCH / program), *map(str, arguments)]

    def run(self, program, *arguments):
        done = subprocess.run(
            self.arguments(program, *arguments),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd="/",
            env=self.environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def worker(self):
        """Options for this recipe's model on a machine without a GPU."""
        return (
            *("--worker.model", self.model, "--worker.device", "cpu"),
            *("--worker.dtype", "float32", "--worker.tasks", "digits", "easy_vqa"),
            *("--worker.importance", self.folder / "importance.json"),
            *("--worker.executor.max-new-tokens", "3", "--cluster.num-actors", "1"),
        )


@pytest.fixture(params=["folder", "hub"])
def chain(request, tmp_path):
    if request.param == "folder":
        return Chain(write_model(tmp_path / "model"), {}, tmp_path)
    return Chain(REPO, write_hub_cache(tmp_path / "cache", REPO), tmp_path)


def test_every_command_goes_through(chain, tmp_path):
    scores, run_dir = tmp_path / "importance.json", tmp_path / "run"
    without_scores = [a for a in chain.worker() if a not in ("--worker.importance", scores)]
    measured = without_scores[:-2]  # importance.py has no cluster options
    chain.run("importance.py", scores, "--num-samples", 2, *measured)
    assert len(json.loads(scores.read_text())) == 16
    for split in ("validation", "test"):
        size = ("--configurations", "corners", "--split", split, "--num-samples", 3)
        chain.run("profile_knobs.py", tmp_path / split, *size, *chain.worker())
    train = (
        *("molmoe-h100", "--run-dir", run_dir, "--steps", 3, "--groups-per-step", 2),
        *("--group-size", 3, "--budget.num-samples", 3, "--evaluation.num-samples", 1),
        *("--evaluation.num-budgets", 2, *chain.worker()),
    )
    process = subprocess.Popen(
        chain.arguments("joint_grpo.py", *train),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env=chain.environment,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "step 2/3" in line:
            break
    assert process.poll() is None, "".join(lines)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    resumed = chain.run("joint_grpo.py", *train)
    assert "resumes at step" in resumed
    store = CheckpointStore(run_dir / "checkpoints")
    assert store.load_latest().state["next_step"] == 3

    tables = ("--validation", tmp_path / "validation/table.npz", "--test")
    evaluated = chain.run(
        *("evaluate.py", run_dir, *tables, tmp_path / "test/table.npz"),
        *("--num-budgets", 2, "--cluster.num-actors", 1),
    )
    assert "the controller" in evaluated
    assert (run_dir / "evaluation" / "evaluation.json").is_file()

    answered = chain.run(
        *("generate.py", "--controller", run_dir, "--prompt", "what is it?"),
        *("--budget-ms", 1000, "--json"),
    )
    answer = json.loads(answered)
    assert answer["latency_ms"] > 0
    assert answer["choices"]["tier"] in ("low", "medium", "high")

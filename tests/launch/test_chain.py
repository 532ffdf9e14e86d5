"""The whole chain of commands on a model in the published layout, at reduced width.

From a hub cache, with all public data sets: doctor, importance, profile, latency estimator,
training with a kill and a resume, evaluation, one answer.
"""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envs.tasks.registry import DATA_SETS
from learner.checkpoint import CheckpointStore
from tests.envs.vqa.fixtures import ORIGINAL, write_original, write_parquet
from tests.published_layout import write_hub_cache

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
REPO = "someone/MolmoE-narrow"
CALIBRATION = ("--calibration-samples", 2)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class Chain:
    """Runs commands on one model in one environment."""

    def __init__(self, model, environment, folder, tasks, data):
        self.model, self.folder, self.tasks, self.data = model, folder, tasks, data
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
            cwd=self.folder,
            env=self.environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def worker(self):
        """Options for this recipe's model on a machine without a GPU."""
        return (
            *("--worker.model", self.model, "--worker.device", "cpu"),
            *("--worker.dtype", "float32", "--worker.tasks", *self.tasks),
            *(str(text).replace("--data.", "--worker.data.") for text in self.data),
            *("--worker.importance", self.folder / "importance.json"),
            *("--worker.executor.max-new-tokens", "3", "--cluster.num-actors", "1"),
        )


@pytest.fixture
def chain(tmp_path):
    sources = data_sets(tmp_path / "data")
    data = (
        *("--data.sources", *(text for item in sources.items() for text in item)),
        *("--data.held-out-st-qa", 4, "--data.validation-share", 0.4),
    )
    environment = write_hub_cache(tmp_path / "cache", REPO)
    return Chain(REPO, environment, tmp_path, tuple(sources), data)


def data_sets(folder):
    """Small data sets in their published schemas: folders by name."""
    sources = {}
    for task in DATA_SETS:
        write = write_original if task.name in ORIGINAL else write_parquet
        (folder / task.name).mkdir(parents=True)
        sources[task.name] = str(write(task.name, folder / task.name))
    return sources


def test_every_command_goes_through(chain, tmp_path):
    scores, run_dir = tmp_path / "importance.json", tmp_path / "run"
    without_scores = [a for a in chain.worker() if a not in ("--worker.importance", scores)]
    measured = without_scores[:-2]  # block_importance.py has no cluster options
    found = chain.run("joint_grpo.py", "doctor", "--tasks", *chain.tasks, *chain.data)
    assert "no problem found" in found, found
    assert all(name in found for name in chain.tasks)
    chain.run("block_importance.py", scores, "--num-samples", 2, *measured)
    assert len(json.loads(scores.read_text())) == 16
    # Eleven test samples from this index are of all nine data sets.
    for split, first, count in (("validation", 0, 3), ("test", 190, 11)):
        size = ("--configurations", "corners", "--split", split, "--num-samples", count)
        size = (*size, "--first-index", first, *CALIBRATION)
        chain.run("profile_knobs.py", tmp_path / split, *size, *chain.worker())
    fitted = ("--results_dir", tmp_path / "test/results", "--output_dir", tmp_path / "fit")
    fitted = (*fitted, "--use_all_datasets", "--num_epochs", 3, "--num_workers", 0)
    chain.run("fit_latency_estimator.py", *fitted)
    assert {path.name for path in (tmp_path / "test/results").iterdir()} == set(chain.tasks)
    train = (
        *("molmoe-h100", "--run-dir", run_dir, "--epochs", 1, "--groups-per-step", 8),
        *("--checkpoint-every", 1),
        *(
            "--group-size",
            3,
            "--budget.num-samples",
            3,
            "--evaluation.num-samples",
            1,
            "--evaluation.num-test-samples",
            1,
        ),
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
        if "step 2/" in line:
            break
    assert process.poll() is None, "".join(lines)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    resumed = chain.run("joint_grpo.py", *train)
    assert "resumes at step" in resumed
    store = CheckpointStore(run_dir / "checkpoints")
    counts = json.loads((run_dir / "data.json").read_text())
    steps = math.ceil(sum(count["train"] for count in counts.values()) / 8)
    assert store.load_latest().state["next_step"] == steps

    tables = ("--validation", tmp_path / "validation/table.npz", "--test")
    evaluated = chain.run(
        *("evaluate.py", run_dir, *tables, tmp_path / "test/table.npz"),
        *("--num-budgets", 2, "--num-samples", 3, "--cluster.num-actors", 1),
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

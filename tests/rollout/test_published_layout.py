"""A model as it is published is run from a folder and from the hub's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from envs.spec import FULL_KNOBS, Sample
from rollout.build import build_executor
from rollout.executor_config import ExecutorConfig
from rollout.group_sharing import MolmoEGroupSession
from rollout.molmoe.config import resolve_config
from rollout.worker_config import WorkerConfig
from tests.published_layout import NARROW, write_hub_cache, write_model

PROJECT = Path(__file__).resolve().parents[2]
REPO = "someone/NarrowMolmoE"
SCORES = {str(index): float(index) for index in range(16)}

IN_A_PROCESS = """
import sys
from pathlib import Path
from rollout.build import WorkerConfig, build_executor
from rollout.molmoe.config import resolve_config
from tests.published_layout import NARROW
assert resolve_config(sys.argv[1]) == NARROW
if len(sys.argv) > 2:
    executor = build_executor(WorkerConfig(model=sys.argv[1], importance=Path(sys.argv[2])))
    assert executor.model.config == NARROW
    print(float(executor.model.lm_head.weight.double().sum()))
"""


def run_with_cache(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, *map(str, arguments)],
        env={**os.environ, **environment, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture
def scores(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(SCORES))
    return path


@pytest.mark.slow
def test_the_configuration_of_a_hub_id_needs_no_weights(tmp_path):
    environment = write_hub_cache(tmp_path, REPO)
    for shard in tmp_path.rglob("*.safetensors*"):
        shard.unlink()
    for tokenizer in tmp_path.rglob("tokenizer.json"):
        tokenizer.unlink()
    done = run_with_cache(environment, REPO)
    assert done.returncode == 0, done.stderr
    absent = run_with_cache(environment, "someone/Absent")
    assert "OSError: someone/Absent is not a local folder, and the hub did not" in absent.stderr


def test_nothing_but_two_small_files_is_asked_of_the_hub(tmp_path, monkeypatch):
    folder, asked = write_model(tmp_path), []

    def snapshot_download(repo_id, *, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve_config(REPO) == NARROW
    assert asked == [(REPO, ["config.json", "generation_config.json"])]


@pytest.mark.slow
def test_published_geometry_runs_from_a_folder(tmp_path, scores):
    folder = write_model(tmp_path / "model")
    assert (folder / "model.safetensors.index.json").is_file()
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    with pytest.raises(ValueError, match="there is no block importance"):
        build_executor(WorkerConfig(model=str(folder)))
    executor = build_executor(
        WorkerConfig(
            model=str(folder), importance=scores, executor=ExecutorConfig(max_new_tokens=4)
        )
    )
    sample = Sample(
        id="s", task="t", image=Image.new("RGB", (1200, 800)), prompt="what is it", answers=()
    )
    group = MolmoEGroupSession(executor, sample)
    group.begin([(FULL_KNOBS.tier, FULL_KNOBS.position)], None)
    (execution,) = group.finish([(FULL_KNOBS.top_k, FULL_KNOBS.num_blocks)])
    assert execution is not None
    # The global crop and a tiling of 3 x 4 crops: 144 + (8 * 3 + 4) * (8 * 4 + 4).
    assert execution.num_vision_tokens == 1152
    assert execution.num_output_tokens >= 1


@pytest.mark.slow
def test_the_same_model_loads_from_the_hubs_cache(tmp_path, scores):
    environment = write_hub_cache(tmp_path / "cache", REPO)
    done = run_with_cache(environment, REPO, scores)
    assert done.returncode == 0, done.stderr
    folder = write_model(tmp_path / "model")
    executor = build_executor(WorkerConfig(model=str(folder), importance=scores))
    expected = float(executor.model.lm_head.weight.double().sum())
    assert float(done.stdout.splitlines()[-1]) == expected

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.fit_latency_estimator import EstimatorOptions, check_device, fit_estimator
from rollout.estimator.estimator import LatencyEstimator
from rollout.estimator.latency_table import LatencyTable, split_by_sample
from rollout.estimator.metrics import LatencyMetrics
from rollout.profiling.records import DecodeReading, ProfileReader
from tests.rollout.estimator.synthetic import Law, law_predictions, write_profiles

SCRIPT = Path(__file__).parents[2] / "launch" / "fit_latency_estimator.py"
NAMES = {
    "num_records",
    "mae_prefill_ms",
    "rmse_prefill_ms",
    "rel_error_prefill",
    "r2_prefill",
    "mae_decode_per_token_ms",
    "rmse_decode_per_token_ms",
    "rel_error_decode_per_token",
    "r2_decode_per_token",
}


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was():
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    return write_profiles(folder, count=12, datasets=("okvqa", "text_vqa"))


def run_script(*arguments, limit_s=280):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
    )


def options(profiles, output_dir, **changes):
    defaults = {"num_epochs": 3, "num_workers": 0, "hidden_dim": 32}
    return EstimatorOptions(results_dir=profiles, output_dir=output_dir, **(defaults | changes))


def test_everything_is_written(profiles, tmp_path):
    fit_estimator(options(profiles, tmp_path))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    groups = {"by_configuration": 27, "by_tier": 3, "by_dataset": 2}
    assert set(metrics["val"]) == NAMES | set(groups)
    for name, count in groups.items():
        assert len(metrics["val"][name]) == count
        assert all(set(group) == NAMES for group in metrics["val"][name].values())
        total = sum(group["num_records"] for group in metrics["val"][name].values())
        assert total == metrics["val"]["num_records"]
    assert list(metrics["val"]["by_dataset"]) == ["okvqa", "text_vqa"]
    assert metrics["data"]["num_records"] == 2 * 12 * 27
    estimator = LatencyEstimator.load(tmp_path / "latency_estimator.safetensors")
    assert estimator.num_parameters == metrics["num_parameters"]
    for name in ("predictions.png", "errors.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/mae_prefill_ms")] == [0, 1, 2]


def test_the_same_seed_gives_the_same_metrics(profiles, tmp_path):
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit_estimator(options(profiles, tmp_path / name, seed=seed))
        contents.append((tmp_path / name / "metrics.json").read_bytes())
        weights = (tmp_path / name / "latency_estimator.safetensors").read_bytes()
        contents.append(weights)
    assert contents[:2] == contents[2:4]
    assert contents[0] != contents[4]


def test_the_reading_decides_what_is_learned(profiles, tmp_path):
    folder = tmp_path / "profiles" / "okvqa"
    folder.mkdir(parents=True)
    for path in sorted((profiles / "okvqa").iterdir()):
        content = json.loads(path.read_text())
        for record in content["per_sample_results"]:
            record["T_decode_per_token"] *= 5
        (folder / path.name).write_text(json.dumps(content))
    means = {}
    for reading in DecodeReading:
        chosen = options(folder.parent, tmp_path / reading, decode_reading=reading)
        metrics = fit_estimator(chosen)
        assert metrics["decode_reading"] == reading.value
        assert metrics["data"]["num_decode_disagree"] == 12 * 27
        estimator = LatencyEstimator.load(tmp_path / reading / "latency_estimator.safetensors")
        means[reading] = estimator.target_mean[1].item()
    assert means["recorded"] == pytest.approx(5 * means["computed"], rel=1e-4)


def test_contradicting_options_are_refused(profiles, tmp_path):
    with pytest.raises(ValueError, match="contradicts"):
        options(profiles, tmp_path, use_all_datasets=True, dataset_names=("okvqa",))
    with pytest.raises(ValueError, match="num_workers is -1"):
        options(profiles, tmp_path, num_workers=-1)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            check_device(options(profiles, tmp_path, device="cuda", num_workers=0))


def test_the_program_takes_the_options_by_their_names(profiles, tmp_path):
    result = run_script(
        *("--results_dir", profiles, "--dataset_names", "text_vqa", "okvqa"),
        *("--output_dir", tmp_path, "--batch_size", 32, "--num_epochs", 2, "--lr", 2e-3),
        *("--device", "cpu", "--seed", 7, "--num_workers", 0, "--decode_reading", "computed"),
    )
    assert result.returncode == 0, result.stderr
    assert "epoch 2: loss" in result.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_parameters"] == 135_170
    assert metrics["decode_reading"] == "computed"
    assert (metrics["options"]["batch_size"], metrics["options"]["seed"]) == (32, 7)


def test_an_unusable_folder_is_one_clear_error(tmp_path):
    result = run_script("--results_dir", tmp_path, "--output_dir", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {tmp_path} holds no <dataset>/")
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_ray_workers_train_as_one_process_does(profiles, tmp_path, num_workers):
    arguments = ("--results_dir", profiles, "--num_epochs", 6, "--hidden_dim", 32)
    for name, count in (("here", 0), ("ray", num_workers)):
        output = tmp_path / name
        result = run_script(*arguments, "--output_dir", output, "--num_workers", count)
        assert result.returncode == 0, result.stderr
    here, there = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("here", "ray")
    )
    if num_workers == 1:
        assert there == here
    for name in ("mae_prefill_ms", "mae_decode_per_token_ms"):  # sums are ordered differently
        assert there["val"][name] == pytest.approx(here["val"][name], rel=0.02)
    assert not list((tmp_path / "ray").glob(".ray_train_*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_changes_nothing(profiles, tmp_path):
    arguments = ["--results_dir", profiles, "--num_epochs", 100, "--hidden_dim", 32]
    result = run_script(*arguments, "--output_dir", tmp_path / "here", "--num_workers", 0)
    assert result.returncode == 0, result.stderr
    command = [sys.executable, SCRIPT, *arguments, "--output_dir", tmp_path / "ray"]
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        workers = set()
        assert process.stdout is not None
        for line in process.stdout:
            match = re.search(r"RayTrainWorker pid=(\d+).*epoch (\d+):", line)
            if match and not workers and int(match[2]) >= 30:
                os.kill(int(match[1]), signal.SIGKILL)
            if match and int(match[2]) >= 30:
                workers.add(match[1])
    assert process.returncode == 0
    assert len(workers) == 2
    here, there = ((tmp_path / name / "metrics.json").read_bytes() for name in ("here", "ray"))
    assert here == there


def cpu_time_of_children():
    """Seconds of all processes that have ended, which do not depend on what else runs here."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_core_experiment_within_three_minutes(tmp_path):
    """Of one core, without Ray; that Ray's worker writes the same is checked on fewer profiles."""
    folder = write_profiles(tmp_path / "profiles")
    start_s = cpu_time_of_children()
    result = run_script(
        *("--results_dir", folder, "--output_dir", tmp_path / "out", "--num_epochs", 50),
        *("--device", "cpu", "--seed", 3407, "--num_workers", 0),
        limit_s=800,
    )
    assert result.returncode == 0, result.stderr
    assert cpu_time_of_children() - start_s < 180
    val = json.loads((tmp_path / "out" / "metrics.json").read_text())["val"]
    table = LatencyTable.of(ProfileReader(folder), DecodeReading.RECORDED)
    held_out = split_by_sample(table, train_share=0.8, seed=3407)[1]
    law = law_predictions(Law(), held_out.inputs_N5)
    floor = LatencyMetrics.of(law, held_out.targets_ms_N2)
    assert np.isclose(val["num_records"], len(held_out))
    assert val["mae_prefill_ms"] < 1.3 * floor.mae_prefill_ms
    assert val["mae_decode_per_token_ms"] < 1.3 * floor.mae_decode_per_token_ms
    assert val["rel_error_prefill"] < 0.05
    assert val["rel_error_decode_per_token"] < 0.1

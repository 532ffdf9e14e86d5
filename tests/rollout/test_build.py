"""What a worker's description says, and what of it is refused before any weight is loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from envs.prices import PriceRange, PriceSampler
from envs.spec import Tier
from rollout.build import build_executor, build_worker, make_env, torch_dtype
from rollout.fingerprint import Fingerprint
from rollout.latency.simulated import SimulatedLatency
from rollout.sample_loader import PreparedSample
from rollout.worker_config import WorkerConfig
from tests.rollout import rig

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def folder(tmp_path):
    rig.write_model_folder(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def never_loaded(monkeypatch):
    def load(*_args, **_options):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("rollout.build.load_model", load)


def write_scores(path, scores):
    path.write_text(json.dumps({str(index): float(score) for index, score in enumerate(scores)}))
    return path


def test_dtypes():
    assert torch_dtype("auto", CPU) == torch_dtype("float32", CPU) == torch.float32
    assert torch_dtype("auto", CUDA) == torch_dtype("bfloat16", CUDA) == torch.bfloat16
    assert torch_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(ValueError, match="float32 is not supported on CUDA"):
        torch_dtype("float32", CUDA)
    with pytest.raises(ValueError, match="unknown dtype 'half'"):
        torch_dtype("half", CPU)


def test_importance_of_the_option_comes_before_the_folders(folder, tmp_path):
    own = build_executor(WorkerConfig(model=str(folder)))
    assert own.importance == rig.executor().importance
    path = write_scores(tmp_path / "scores.json", range(16))
    given = build_executor(WorkerConfig(model=str(folder), importance=path))
    assert given.importance.scores == tuple(range(16))


@pytest.mark.usefixtures("never_loaded")
def test_a_model_without_scores_is_refused_with_the_way_to_measure_them(folder):
    with pytest.raises(AssertionError, match="the weights were loaded"):
        build_executor(WorkerConfig(model=str(folder)))
    (folder / "importance_scores.json").unlink()
    with pytest.raises(ValueError, match="there is no block importance") as error:
        build_executor(WorkerConfig(model=str(folder)))
    assert f"launch/block_importance.py OUT.json --worker.model {folder}" in str(error.value)
    assert "--worker.importance OUT.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_importance_by_task_comes_from_the_command_line(folder, tmp_path):
    path = write_scores(tmp_path / "chain.json", range(16))
    arguments = ["--model", str(folder), "--importance-by-task", "chain", str(path)]
    config = tyro.cli(WorkerConfig, args=arguments)
    assert config.importance_by_task == {"chain": Path(path)}
    worker = build_worker(config)
    prefixes = {}
    for task in ("chain", "digits"):
        index = next(i for i in range(99) if worker.tasks.sample("train", i).task == task)
        sample = worker.tasks.sample("train", index)
        prefixes[task] = worker.executor.begin(sample, Tier.LOW, None)
    assert prefixes["chain"].importance.scores == tuple(range(16))
    assert prefixes["digits"].importance == worker.executor.importance


@pytest.mark.usefixtures("never_loaded")
def test_importance_of_an_unknown_task_is_refused(folder, tmp_path):
    config = WorkerConfig(model=str(folder), importance_by_task={"chian": tmp_path / "a.json"})
    with pytest.raises(ValueError, match="importance_by_task names chian, and the tasks are"):
        build_executor(config)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(("name", "value"), [("n_layers", 8), ("moe_top_k", 2)])
def test_a_model_that_the_knobs_do_not_fit_is_refused_unloaded(folder, name, value):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match="the knob"):
        build_executor(WorkerConfig(model=str(folder)))


def test_a_missing_latency_table_asks_for_one(tmp_path):
    with pytest.raises(ValueError, match="is missing: write latencies as"):
        SimulatedLatency.from_file(tmp_path / "latencies.json")


PRICES = PriceSampler(range=PriceRange(low=0.01, high=2.0), share_free=0.0)


def test_an_environment_with_prices_knows_what_they_are_for(model_folder, monkeypatch):
    measured = np.array([[10.0, 80.0], [12.0, 82.0], [14.0, 90.0]])
    monkeypatch.setattr("rollout.build.measure_extremes", lambda _worker: measured)
    env = make_env(str(model_folder), ("counting",), budgets=rig.BUDGETS, prices=PRICES)
    observation, info = env.reset(seed=0)
    assert 0.01 <= info["price"] <= 2.0
    assert observation[-4] == np.float32(info["price"])
    assert env.group.reward.full_ms == 82.0
    assert env.group.budgets == rig.BUDGETS
    tokens = [env.group.encode_budget(50.0, price) for price in (0.0, 0.1, 1.0)]
    assert len({token.tobytes() for token in tokens}) == 3


def test_an_environment_measures_only_what_is_not_given(model_folder, monkeypatch):
    def measure(_worker):
        raise AssertionError("latencies were measured")

    monkeypatch.setattr("rollout.build.measure_extremes", measure)
    env = make_env(str(model_folder), ("counting",), budgets=rig.BUDGETS)
    _, info = env.reset(seed=0)
    assert info["price"] == 0.0
    with pytest.raises(AssertionError, match="latencies were measured"):
        make_env(str(model_folder), ("counting",))


def test_images_can_be_cut_as_in_the_first_study(tmp_path):
    rig.write_model_folder(tmp_path)
    executors = [
        build_executor(WorkerConfig(model=str(tmp_path), tiling=tiling, device="cpu"))
        for tiling in ("letterbox", "fill")
    ]
    sample = rig.NoiseTask().sample("test", 3)
    images = []
    for executor in executors:
        prepared = PreparedSample(sample, executor.preprocessor)
        images.append(prepared.inputs(Tier.HIGH).images)
        assert torch.equal(images[-1][0], prepared.overview().crop[0])
    assert 9 <= len(images[1]) - 1 <= 15
    assert len(images[0]) - 1 <= 12
    first, second = (Fingerprint.of(e, rig.NoiseTask()) for e in executors)
    assert "architecture" in first.differences(second)

"""Runs in an object store that are only read."""

import shutil

import pytest

from envs.price_curve import PRICE_CURVE_NAME, PriceCurve
from launch.answering.answerer import Answerer
from launch.run import resume
from launch.storage.fetched_run import absolute_run, local_folder
from launch.storage.object_store import RunStore
from learner.checkpoint import find_controller
from tests.launch.storage.s3 import write_step
from tests.rollout import rig


@pytest.fixture
def uri(tmp_path):
    """A run of two checkpoints in a store, of which no local copy is left."""
    store = RunStore((tmp_path / "store").as_uri(), tmp_path / "run")
    for step in (1, 2):
        store.mirror(write_step(tmp_path / "run", step))
    shutil.rmtree(tmp_path / "run")
    return store.uri


def test_the_newest_checkpoint_is_fetched_and_nothing_is_written(uri, tmp_path):
    before = sorted((tmp_path / "store").rglob("*"))
    assert find_controller(local_folder(uri)).name == "step_00000002"
    assert sorted((tmp_path / "store").rglob("*")) == before


def test_a_price_curve_is_fetched_with_the_checkpoint(uri, tmp_path):
    curve = PriceCurve(prices=(0.0, 1.0), time_ms=(50.0, 30.0))
    curve.save(tmp_path / "store" / PRICE_CURVE_NAME)
    folder = find_controller(local_folder(uri))
    assert PriceCurve.load(folder.parent.parent / PRICE_CURVE_NAME) == curve


def test_one_checkpoint_can_be_named(uri, tmp_path):
    (first, _) = sorted((tmp_path / "store" / "checkpoints").glob("step_*"))
    folder = local_folder(f"{uri}/checkpoints/{first.name}")
    assert find_controller(folder) == folder


def test_a_controller_answers_from_its_uri(tmp_path, model_folder):
    rig.controller().save(tmp_path / "here")
    (tmp_path / "here" / "manifest.json").write_text("{}")
    settings = {"model": str(model_folder), "device": "cpu"}
    answerer = Answerer.load(
        (tmp_path / "here").as_uri(),
        worker_settings=settings,
        executor_settings={"max_new_tokens": 2},
    )
    assert answerer.answer("what is it", budget_ms=50).latency_ms > 0


def test_a_store_without_a_run_is_one_clear_line(tmp_path):
    uri = (tmp_path / "empty").as_uri()
    with pytest.raises(ValueError, match="holds no checkpoint: give the folder of a run"):
        local_folder(uri)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        resume.load_checkpoint(uri)


def test_paths_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_folder("runs/one").parts == ("runs", "one")
    assert absolute_run("runs/one") == str(tmp_path / "runs" / "one")
    assert absolute_run("s3://bucket/run?scheme=http") == "s3://bucket/run?scheme=http"

"""A controller to be shared, and the one that ships."""

import json

import pytest

from envs.price_curve import PRICE_CURVE_NAME, PriceCurve
from launch.analysis.settings import differing
from launch.answering.loading import SHIPPED_CONTROLLER, run_or_shipped
from launch.export_controller import PLACES, export
from launch.run.recipes import embedded, from_json, to_json
from learner.checkpoint import CheckpointStore, find_controller
from rollout.build import build_executor
from rollout.fingerprint import Fingerprint
from rollout.worker_config import WorkerConfig
from tests import launch_rig


@pytest.fixture
def run(tmp_path):
    run = launch_rig.local_run(tmp_path / "run", launch_rig.config())
    run.commit()
    return run


def test_an_export_is_a_run_that_answers_and_names_no_place(run, tmp_path):
    PriceCurve(prices=(0.0, 1.0), time_ms=(50.0, 40.0)).save(tmp_path / "run" / PRICE_CURVE_NAME)
    folder = export(str(run.store.root), tmp_path / "out")
    assert folder == find_controller(tmp_path / "out")
    found = CheckpointStore(folder.parent).load(folder)
    original = CheckpointStore(run.store.root).load(find_controller(run.store.root))
    weights = [c.controller.to_numpy() for c in (found, original)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[1])
    assert str(tmp_path) not in (folder / "state.json").read_text()
    assert not set(PLACES) & set(found.state["configuration"])
    assert found.state["calibration"] == original.state["calibration"]
    assert PriceCurve.load(tmp_path / "out" / PRICE_CURVE_NAME).time_ms == (50.0, 40.0)


def test_what_cannot_be_exported_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="exists: name a new folder"):
        export(str(run.store.root), tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        export(str(tmp_path / "absent"), tmp_path / "out")
    saved = tmp_path / "saved"
    run.learner.controller.save(saved)
    with pytest.raises(ValueError, match="is no checkpoint of a run"):
        export(str(saved), tmp_path / "out")
    run.reporter.label = "simulated latency"
    run.next_step += 1
    run.commit()
    with pytest.raises(ValueError, match="are not measured but simulated latency"):
        export(str(run.store.root), tmp_path / "out")


def test_the_shipped_controller_is_the_default_recipes_product():
    folder = find_controller(SHIPPED_CONTROLLER)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6
    state = CheckpointStore(folder.parent).load(folder).state
    assert (state["seed"], state["latency_source"]) == (1, "measured")
    assert state["next_step"] == embedded().steps
    ours, theirs = to_json(embedded()), to_json(from_json(state["configuration"]))
    names = {name.partition(".")[0] for name in differing([ours, theirs])}
    assert names <= {*PLACES, "evaluation", "seed"}
    trained_on = Fingerprint.from_json(state["fingerprint"])
    mine = Fingerprint.of(build_executor(WorkerConfig(device="cpu", dtype="float32")))
    assert trained_on.weights == mine.weights


def test_it_answers_only_for_its_own_model():
    said = []
    assert run_or_shipped(None, None, said.append) == SHIPPED_CONTROLLER
    assert "ships with the small model" in said[0]
    assert run_or_shipped("runs/one", None, said.append) == "runs/one"
    assert run_or_shipped(None, {"dtype": "bfloat16"}, said.append) is None


def test_its_state_is_plain(tmp_path):
    state = json.loads((find_controller(SHIPPED_CONTROLLER) / "state.json").read_text())
    assert state["packages"]
    assert "/" not in json.dumps(state["configuration"]["worker"])

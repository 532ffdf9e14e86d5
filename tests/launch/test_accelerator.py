"""Evaluation and generation on a pretended accelerator give the results of the CPU."""

import pytest
from PIL import Image

from launch.analysis.greedy_sweep import greedy_sweep
from launch.answering.answerer import Answerer
from policy.weights import PolicyWeights, weights_sha256
from rollout.executor import MolmoEExecutor
from rollout.molmoe import load_model
from rollout.worker import RolloutWorker
from tests import launch_rig
from tests.in_process import LocalFleet
from tests.pretended_accelerator import DEVICE
from tests.rollout import rig


def test_greedy_evaluation_is_that_of_the_cpu(accelerator, model_folder):
    here = launch_rig.worker()
    own = here.executor
    executor = MolmoEExecutor(
        load_model(model_folder, device=DEVICE),
        own.preprocessor,
        own.importance,
        own.config,
        own.simulated,
    )
    there = RolloutWorker(executor, here.tasks)
    arrays = rig.controller(seed=3).to_numpy()
    weights = PolicyWeights(version=1, sha256=weights_sha256(arrays), arrays=arrays)
    expected, found = (
        greedy_sweep(
            LocalFleet(worker),
            launch_rig.setup(),
            weights,
            split="validation",
            indices=range(2),
            budgets_ms=[10.0, 50.0],
        )
        for worker in (here, there)
    )
    assert found.to_json() == expected.to_json()


@pytest.mark.parametrize("has_controller", [False, True])
def test_questions_are_answered_as_on_the_cpu(
    accelerator, model_folder, tmp_path, monkeypatch, has_controller
):
    rig.controller().save(tmp_path)
    picture = tmp_path / "picture.png"
    image = rig.NoiseTask().sample("train", 3).image
    assert isinstance(image, Image.Image)
    image.save(picture)

    def asked():
        answerer = Answerer.load(
            tmp_path if has_controller else None,
            worker_settings={"model": str(model_folder)},
            executor_settings={"max_new_tokens": 3},
        )
        return answerer.answer("what is it", image=picture, budget_ms=50.0)

    expected = asked()
    monkeypatch.setattr("rollout.build.torch_device", lambda name: DEVICE)
    found = asked()
    assert accelerator.reads, "it ran on the accelerator"
    for name in ("text", "knobs", "decided_by", "finished"):
        assert getattr(found, name) == getattr(expected, name), name
    assert set(found.stages_ms) == set(expected.stages_ms)

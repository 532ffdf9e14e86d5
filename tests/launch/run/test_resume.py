"""What a resumed run must share with the run that it continues."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.cluster.config import ClusterConfig
from launch.joint_grpo import train
from launch.run.opening import open_run
from launch.run.recipes import RECIPES, EvaluationConfig, PriceConfig, from_json, to_json
from launch.run.resume import check_resumable
from launch.storage.lock import RunLock
from learner.config import LearnerConfig
from rollout.worker_config import WorkerConfig
from tests import launch_rig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = launch_rig.local_run(tmp_path_factory.mktemp("run"), launch_rig.config(steps=2))
    train(run)
    return run.store.load_latest()


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_survives_as_json(name):
    config = RECIPES[name]()
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": "other"}, "recipe test \\(now other\\)"),
        ({"seed": 7}, "seed 42 \\(now 7\\)"),
        ({"group_size": 8}, "group_size 4 \\(now 8\\)"),
        ({"groups_per_step": 5}, "groups_per_step 3 \\(now 5\\)"),
        (
            {"reward": "reference", "price": launch_rig.FREE_TIME},
            "price.high 2.0 \\(now None\\), .*reward budget \\(now reference\\)",
        ),
        ({"price": PriceConfig(default=0.1)}, "price.default 0.02 \\(now 0.1\\)"),
        ({"max_staleness": 1}, "max_staleness 0 \\(now 1\\)"),
        (
            {"learner": LearnerConfig(learning_rate=5e-3)},
            "learning_rate 0.001 \\(now 0.005",
        ),
        ({"worker": WorkerConfig(tasks=("digits",))}, "worker.tasks .*digits"),
        ({"steps": 1}, "has done 2 steps and 1 were asked for"),
    ],
)
def test_other_settings_are_refused_with_both_values(checkpoint, changes, named):
    config = replace(launch_rig.config(steps=2), **changes)
    with pytest.raises(ValueError, match=named):
        check_resumable(checkpoint, config, "")


def test_latencies_of_another_source_are_refused(checkpoint):
    with pytest.raises(ValueError, match="from measured, not from SIMULATED"):
        check_resumable(checkpoint, launch_rig.config(), "SIMULATED LATENCY x")


def test_what_moves_no_weight_may_change(checkpoint):
    config = replace(
        launch_rig.config(steps=9),
        run_dir="/elsewhere",
        keep_last=7,
        checkpoint_every=3,
        evaluation=EvaluationConfig(every=1),
        cluster=ClusterConfig(num_actors=5),
        groups_per_step=0,
    )
    resumed = check_resumable(checkpoint, config, "")
    assert resumed.groups_per_step == 3, "the number that the run was begun with"
    assert resumed.steps == 9


def test_groups_follow_the_actors_unless_they_are_stated():
    config = replace(launch_rig.config(), groups_per_step=0)
    assert config.sized_for(64).groups_per_step == 384
    assert config.sized_for(1).groups_per_step == 24
    assert launch_rig.config().sized_for(64).groups_per_step == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_start_profile": Path("/nowhere.npz")}, "/nowhere.npz"),
        ({"worker": WorkerConfig(tasks=())}, "no task given"),
        ({"worker": WorkerConfig(tasks=("nosuch",))}, "unknown task 'nosuch'"),
        ({"worker": WorkerConfig(importance=Path("/nowhere.json"))}, "/nowhere.json is missing"),
        ({"worker": WorkerConfig(model="/nowhere")}, "/nowhere is not a folder"),
    ],
)
def test_mistakes_are_found_before_ray_starts_and_leave_no_folder(
    tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(
        "launch.run.opening.connect", lambda _address: pytest.fail("Ray was started")
    )
    config = launch_rig.config(run_dir=str(tmp_path / "run"), **changes)
    with pytest.raises(ValueError, match=message):
        open_run(config).__enter__()
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "launch.run.opening.connect", lambda _address: pytest.fail("Ray was started")
    )
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run"), pytest.raises(RuntimeError, match="is in use by process"):
        open_run(launch_rig.config(run_dir=str(tmp_path / "run"))).__enter__()


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="is a file: give a folder"):
        open_run(launch_rig.config(run_dir=str(tmp_path / "run"))).__enter__()

"""Runs whose home is a URI."""

import shutil

import pytest
from ray.train import Checkpoint

from launch.joint_grpo import train
from launch.storage import fetch_latest, is_uri, mirror, staging_folder
from learner.checkpoint import CheckpointStore
from policy.weights import weights_sha256
from tests import launch_rig


def test_checkpoints_reach_the_store_and_come_back(tmp_path):
    uri = (tmp_path / "store").as_uri()
    run = launch_rig.local_run(tmp_path / "run", launch_rig.config(steps=2))
    handed_on = []
    run.on_saved = lambda path: handed_on.append(mirror(path, uri))
    train(run)
    assert all(isinstance(c, Checkpoint) for c in handed_on)
    shutil.rmtree(tmp_path / "run")
    fetch_latest(uri, tmp_path / "again")
    found = CheckpointStore(tmp_path / "again" / "checkpoints").load_latest()
    assert found.state["next_step"] == 2
    ours = weights_sha256(run.learner.controller.to_numpy())
    assert weights_sha256(found.controller.to_numpy()) == ours
    with handed_on[-1].as_directory() as folder:
        assert CheckpointStore(tmp_path / "x").load(folder).step == 2


def test_an_empty_store_is_a_fresh_run(tmp_path):
    fetch_latest((tmp_path / "none").as_uri(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unusable_uris_are_one_clear_error(tmp_path):
    assert is_uri("s3://bucket/run")
    assert staging_folder("s3://a/b") == staging_folder("s3://a/b") != staging_folder("s3://a/c")
    with pytest.raises(ValueError, match="nosuch://place cannot be used"):
        fetch_latest("nosuch://place", tmp_path)

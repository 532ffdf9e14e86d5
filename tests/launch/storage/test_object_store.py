"""Runs whose home is a URI."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.train import Checkpoint

from launch.joint_grpo import train
from launch.storage import retries
from launch.storage.inputs import is_uri
from launch.storage.object_store import RunStore
from launch.storage.retries import StoreError
from launch.storage.run_folder import staging_folder
from learner.archive import name_of
from learner.checkpoint import CheckpointStore
from learner.manifest import step_folders, verified_manifest
from policy.weights import weights_sha256
from tests import launch_rig
from tests.launch.storage.s3 import client, history, keys, s3_server, uri_of, write_step

REFUSES_UPLOADS = {
    "Statement": [
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:PutObject",
            "Resource": "arn:aws:s3:::bucket/*",
        }
    ]
}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)


def steps(run_dir: Path) -> list[int]:
    return [verified_manifest(folder).step for folder in step_folders(run_dir / "checkpoints")]


def remote_steps(endpoint: str) -> set[str]:
    names = {key.split("/")[1] for key in keys(endpoint) if key.startswith("checkpoints/step_")}
    return {name.partition("-")[0] for name in names}


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_checkpoints_reach_the_store_and_come_back(tmp_path, uri, kind):
    home = uri if kind == "s3" else (tmp_path / "store").as_uri()
    run = launch_rig.local_run(tmp_path / "run", launch_rig.config(steps=2))
    store = RunStore(home, tmp_path / "run")
    handed_on = []
    run.on_saved = lambda path: handed_on.append(store.mirror(path))
    train(run)
    assert all(isinstance(c, Checkpoint) for c in handed_on)
    run.reporter.close()
    shutil.rmtree(tmp_path / "run")
    RunStore(home, tmp_path / "again").fetch()
    again = CheckpointStore(tmp_path / "again" / "checkpoints")
    found = again.load_latest(to_resume=True)
    assert found.state["next_step"] == 2
    ours = weights_sha256(run.learner.controller.to_numpy())
    assert weights_sha256(found.controller.to_numpy()) == ours
    with handed_on[-1].as_directory() as folder:
        assert CheckpointStore(tmp_path / "x").load(folder).step == 2


def test_a_fresh_head_keeps_the_history_and_the_best(tmp_path, endpoint, uri):
    store = RunStore(uri, tmp_path / "one")
    for step, metric in ((1, 0.9), (2, 0.1), (3, 0.2), (4, None)):
        store.mirror(write_step(tmp_path / "one", step, metric))
    assert remote_steps(endpoint) == {"step_00000001", "step_00000003", "step_00000004"}
    events = f"tensorboard/events.{os.getpid()}"

    fresh = tmp_path / "two"
    again = RunStore(uri, fresh)
    again.fetch()
    assert steps(fresh) == [1, 4]
    assert CheckpointStore(fresh / "checkpoints").best().name == "step_00000001"
    assert history(fresh) == [1, 2, 3, 4]
    assert (fresh / events).read_text() == "1 2 3 4 "
    again.mirror(write_step(fresh, 5))
    (fresh / "evaluation.json").write_text("{}")
    (fresh / "curves.png").write_bytes(b"png")
    assert again.mirror_results()
    assert {"evaluation.json", "curves.png", "metrics.jsonl", events, "LATEST"} <= keys(endpoint)
    assert remote_steps(endpoint) == {"step_00000001", "step_00000004", "step_00000005"}
    again.fetch()
    RunStore(uri, tmp_path / "three").fetch()
    assert history(tmp_path / "three") == [1, 2, 3, 4, 5]


def test_an_empty_store_is_a_fresh_run(tmp_path, uri):
    RunStore(uri, tmp_path / "run").fetch()
    assert not (tmp_path / "run").exists()


def test_a_torn_newest_checkpoint_gives_way_to_an_older_one(tmp_path, endpoint, uri, caplog):
    store = RunStore(uri, tmp_path / "one")
    for step in (1, 2):
        store.mirror(write_step(tmp_path / "one", step))
    (torn,) = (key for key in keys(endpoint) if "step_00000002" in key and "learner.pt" in key)
    client(endpoint).put_object(Bucket="bucket", Key=f"run/{torn}", Body=b"half")
    RunStore(uri, tmp_path / "two").fetch()
    assert steps(tmp_path / "two") == [1]
    assert "skipping step_00000002" in caplog.text
    for key in keys(endpoint) - {"LATEST"}:
        client(endpoint).delete_object(Bucket="bucket", Key=f"run/{key}")
    with pytest.raises(StoreError, match="none of the 1 checkpoints"):
        RunStore(uri, tmp_path / "three").fetch()


def test_a_half_fetched_checkpoint_is_fetched_again(tmp_path, uri):
    RunStore(uri, tmp_path / "one").mirror(write_step(tmp_path / "one", 1))
    fresh = tmp_path / "two"
    RunStore(uri, fresh).fetch()
    (fresh / "checkpoints" / "step_00000001" / "learner.pt").write_bytes(b"half")
    remains = fresh / "checkpoints" / ".writing_step_00000001"
    remains.mkdir()
    RunStore(uri, fresh).fetch()
    assert steps(fresh) == [1]
    assert not remains.exists()


@pytest.mark.parametrize("damage", ["torn", "absent"])
def test_a_damaged_part_of_the_local_archive_is_fetched_again(tmp_path, uri, damage):
    store = RunStore(uri, tmp_path / "one")
    store.mirror(write_step(tmp_path / "one", 1))
    fresh = tmp_path / "two"
    RunStore(uri, fresh).fetch()
    part = fresh / "checkpoints" / "archive" / name_of(b"of every step")
    if damage == "torn":
        part.write_bytes(b"")
    else:
        part.unlink()
    store.mirror(write_step(tmp_path / "one", 2))
    RunStore(uri, fresh).fetch()
    assert CheckpointStore(fresh / "checkpoints").load_latest(to_resume=True).step == 2


def test_what_is_newer_here_stays(tmp_path, uri):
    store = RunStore(uri, tmp_path / "run")
    store.mirror(write_step(tmp_path / "run", 1))
    write_step(tmp_path / "run", 2)
    store.fetch()
    assert steps(tmp_path / "run") == [1, 2]
    assert history(tmp_path / "run") == [1, 2]


def test_a_failed_upload_is_made_up_for(tmp_path, caplog, impatient):
    run_dir = tmp_path / "run"
    with s3_server() as (endpoint, uri):
        store = RunStore(uri, run_dir)
        store.fetch()
        store.mirror(write_step(run_dir, 1, metric=0.5))
        client(endpoint).put_bucket_policy(Bucket="bucket", Policy=json.dumps(REFUSES_UPLOADS))
        before = keys(endpoint)
        with caplog.at_level(logging.WARNING):
            assert store.mirror(write_step(run_dir, 2)) is None
            assert not store.mirror_results()
        assert store.num_failures == 2
        assert "the run continues" in caplog.text
        assert keys(endpoint) == before
        client(endpoint).delete_bucket_policy(Bucket="bucket")
        assert store.mirror(write_step(run_dir, 3)) is not None
        assert remote_steps(endpoint) == {f"step_0000000{step}" for step in (1, 2, 3)}


def test_a_checkpoint_that_is_dropped_meanwhile_is_no_failure(tmp_path, uri):
    store = RunStore(uri, tmp_path / "run")
    path = write_step(tmp_path / "run", 1)
    shutil.rmtree(path)
    assert store.mirror(path) is None
    assert store.num_failures == 0


def test_unusable_uris_are_one_clear_error(tmp_path, endpoint, impatient):
    assert is_uri("s3://bucket/run")
    assert staging_folder("s3://a/b") == staging_folder("s3://a/b") != staging_folder("s3://a/c")
    for unusable in ("nosuch://place", "s3://", "s3:///run"):
        with pytest.raises(ValueError, match=f"{unusable} (cannot be used|names no bucket)"):
            RunStore(unusable, tmp_path)
    with pytest.raises(ValueError, match=r"cannot be written to.*check that the bucket"):
        RunStore(uri_of(endpoint, "nosuchbucket/run"), tmp_path).fetch()


CHILD = """
import sys, time
from pathlib import Path
from launch.storage.object_store import RunStore
from tests.launch.storage.s3 import write_step
uri, run_dir = sys.argv[1], Path(sys.argv[2])
store = RunStore(uri, run_dir)
print("ready", flush=True)
store.fetch()
newest = max((int(p.name[5:]) for p in run_dir.glob("checkpoints/step_*")), default=0)
while True:
    newest += 1
    store.mirror(write_step(run_dir, newest, metric=1.0 if newest == 1 else 0.1))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_fresh", [True, False])
def test_sigkill_at_any_moment_loses_nothing(tmp_path, is_fresh):
    """Ten kills; what the store holds is whole each time, never older than before."""
    rng = random.Random(0)
    done = 0
    with s3_server() as (endpoint, uri):
        for round_ in range(10):
            run_dir = tmp_path / (f"head-{round_}" if is_fresh else "head")
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, uri, str(run_dir)], stdout=subprocess.PIPE
            )
            try:
                assert child.stdout.readline() == b"ready\n"
                time.sleep(rng.uniform(0.0, 1.5))
            finally:
                child.send_signal(signal.SIGKILL)
                child.wait()
            seen = tmp_path / f"seen-{round_}"
            RunStore(uri, seen).fetch()
            found = steps(seen)
            newest = found[-1] if found else 0
            assert newest >= done
            if newest:
                assert set(range(1, newest + 1)) <= set(history(seen))
                assert found[0] == 1, "the best stays"
                latest = client(endpoint).get_object(Bucket="bucket", Key="run/LATEST")
                assert latest["Body"].read().decode().startswith(f"step_{newest:08d}-")
            done = newest
    assert done > 3

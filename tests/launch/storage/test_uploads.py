"""Uploads beside the loop, and a whole run in an object store that moves to another machine."""

import json
import shutil
import signal
import subprocess
import threading
import time

import pytest

from launch.storage.run_folder import staging_folder
from launch.storage.uploads import Uploader
from learner.checkpoint import CheckpointStore
from tests import launch_rig
from tests.launch.storage.s3 import client, keys, s3_server
from tests.launch.test_cli import command
from tests.rollout import rig


class SlowStore:
    """Takes its time; notes what it was given."""

    uri, run_dir = "s3://slow/run", "here"

    def __init__(self):
        self.mirrored, self.results, self.free = [], 0, threading.Event()

    def mirror(self, checkpoint):
        assert self.free.wait(60)
        self.mirrored.append(checkpoint)
        if checkpoint == "bad":
            raise RuntimeError("no such bucket")

    def mirror_results(self):
        self.results += 1


def test_the_newest_checkpoint_overtakes_those_that_wait():
    store = SlowStore()
    uploader = Uploader(store)
    uploader.submit("one")
    time.sleep(0.2)
    for name in ("two", "three", "four"):
        uploader.submit(name)
    store.free.set()
    deadline = time.monotonic() + 60
    while len(store.mirrored) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    uploader.close()
    assert store.mirrored == ["one", "four"]
    assert store.results == 1


def test_a_store_that_fails_ends_neither_the_thread_nor_the_run(caplog):
    store = SlowStore()
    store.free.set()
    uploader = Uploader(store)
    for name in ("bad", "good"):
        uploader.submit(name)
        deadline = time.monotonic() + 60
        while name not in store.mirrored and time.monotonic() < deadline:
            time.sleep(0.01)
    uploader.close()
    assert store.mirrored == ["bad", "good"]
    assert store.results == 1
    assert "no such bucket" in caplog.text


def test_the_last_upload_is_awaited_within_a_limit(monkeypatch, caplog):
    monkeypatch.setattr("launch.storage.uploads.LAST_UPLOAD_S", 0.1)
    store = SlowStore()
    uploader = Uploader(store)
    uploader.submit("one")
    time.sleep(0.2)
    uploader.close()
    assert "did not finish within" in caplog.text
    store.free.set()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_in_a_store_goes_on_on_another_machine(tmp_path):
    model = tmp_path / "model"
    rig.write_model_folder(model)
    (model / "latency.json").write_text(json.dumps(dict(launch_rig.simulated().table_ms)))
    with s3_server() as (endpoint, uri):
        staging = staging_folder(uri)
        shutil.rmtree(staging, ignore_errors=True)
        options = {"text": True, "cwd": "/"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        arguments = [
            a if a != "RUN" else uri for a in command(model, "RUN", "--keep-last", "2", steps=12)
        ]
        process = subprocess.Popen(arguments, **options, **streams)
        for line in process.stdout:
            if "step 5/" in line:
                break
        deadline = time.monotonic() + 60
        while "LATEST" not in keys(endpoint) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=200)
        shutil.rmtree(staging)
        again = subprocess.run(arguments, **options, capture_output=True, timeout=600, check=False)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "resumes at step" in again.stdout
        found = keys(endpoint)
        assert {"evaluation.json", "curves.png", "metrics.jsonl", "LATEST"} <= set(found)
        rows = client(endpoint).get_object(Bucket="bucket", Key="run/metrics.jsonl")["Body"].read()
        steps = [json.loads(row)["step"] for row in rows.splitlines() if b"reward/mean" in row]
        assert steps == list(range(12)), "the history before the kill is there too"
        remote = {key.split("/")[1] for key in found if key.startswith("checkpoints/step_")}
        assert len(remote) <= 3, "two kept ones and the best"
        assert CheckpointStore(staging / "checkpoints").load_latest().state["next_step"] == 12
        shutil.rmtree(staging)

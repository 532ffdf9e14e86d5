"""A run that is killed twice and resumed is one run with one curve in every tracker.

Each uses the real package, on this machine alone.
"""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from launch.tracking.mlflow_backend import MlflowBackend
from launch.tracking.tracker import TrackedRun

ROOT = Path(__file__).parents[3]
KILLS = ("3", "5", "")
"""Steps after which the run is killed; the last time it ends by itself."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def needs(package):
    found = find_spec(package)
    is_absent = found is None or found.origin is None
    return pytest.mark.skipif(
        is_absent, reason=f"{package} is not installed: pip install -e '.[{package}]'"
    )


def run_with_kills(folder, tracker, **environment):
    """Runs it until it ends; returns its rows as metrics.jsonl has them."""
    (folder / tracker).mkdir()
    module = "tests.launch.tracking.killed_run"
    for kill in KILLS:
        done = subprocess.run(
            [sys.executable, "-m", module, str(folder / "run"), tracker, kill],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            timeout=300,
            capture_output=True,
            text=True,
        )
        assert done.returncode == (-9 if kill else 0), done.stdout + done.stderr
        assert "failed" not in done.stdout + done.stderr
        progress = json.loads((folder / "run" / "trackers" / f"{tracker}.json").read_text())
        assert progress["num_rows"] >= int(kill or 6) - 1, "rows had arrived before the kill"
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert progress["num_rows"] == len(rows)
    return rows


def curve(rows, name):
    """The values of a scalar by number of steps done."""
    found = {row["step"] + 1: row[name] for row in rows if name in row}
    assert len(found) == sum(name in row for row in rows)
    return found


NAMES = ("reward/mean", "time/step_s", "at_a_glance/accuracy_held_out")
"""Durations differ each time that a step is done, so that they show which time it was."""


def check_one_curve(rows, values_of):
    """`values_of` gives pairs of steps done and value of a scalar, in the tracker."""
    assert sorted(curve(rows, "reward/mean")) == [1, 2, 3, 4, 5, 6]
    for name in NAMES:
        pairs = list(values_of(name))
        expected = curve(rows, name)
        assert {step: pytest.approx(value) for step, value in pairs} == expected
        assert len({(step, round(value, 9)) for step, value in pairs}) == len(expected), name


@needs("mlflow")
def test_mlflow(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow/tracking.db"
    rows = run_with_kills(tmp_path, "mlflow", MLFLOW_TRACKING_URI=uri)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "killed"
    assert run.data.params["steps"] == "6"
    assert not [name for name in run.data.tags if "undone" in name]

    def values_of(name):
        found = client.get_metric_history(run.info.run_id, name)
        return [(metric.step, metric.value) for metric in found]

    check_one_curve(rows, values_of)


@needs("mlflow")
def test_a_kill_while_mlflow_makes_its_tables_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with sqlite3.connect(tmp_path / "mlflow.db.partial") as connection:
        connection.execute("CREATE TABLE webhooks (webhook_id INTEGER)")
    for _ in range(2):
        backend = MlflowBackend()
        backend.open(TrackedRun(name="one", folder=tmp_path, config={"a": 1}), "an id")
        backend.log(0, 1, {"loss": 1.0})
        backend.close()
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert not (tmp_path / "mlflow.db.partial").exists()


@needs("trackio")
def test_trackio(tmp_path):
    rows = run_with_kills(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        saved = connection.execute("SELECT run_id, run_name, step, metrics FROM metrics").fetchall()
        (config,) = connection.execute("SELECT config FROM configs").fetchall()
    assert len({(run_id, name) for run_id, name, *_ in saved}) == 1
    assert json.loads(config[0])["steps"] == "6"

    def values_of(name):
        scalars = [(step, json.loads(metrics)) for *_, step, metrics in saved]
        return [(step, row[name]) for step, row in scalars if name in row]

    check_one_curve(rows, values_of)


BLOCK_BYTES = 32768


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        _, size, kind = struct.unpack("<IHB", data[place : place + 7]) if left >= 7 else (0, 0, 0)
        if not kind:
            place += left
            continue
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@needs("wandb")
def test_wandb(tmp_path):
    rows = run_with_kills(tmp_path, "wandb", WANDB_MODE="offline")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-*/*.wandb"))
    assert len(files) == len(KILLS), "one file of each process"
    records = [record for path in files for record in wandb_records(path)]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert len({run.run_id for run in runs}) == 1
    assert {run.display_name for run in runs} == {"killed"}
    histories = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]

    def values_of(name):
        return [(row["steps_done"], row[name]) for row in histories if name in row]

    check_one_curve(rows, values_of)

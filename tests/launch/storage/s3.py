"""A real S3 server on the loopback address, and a run folder without a model."""

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from learner.archive import name_of
from learner.checkpoint import CheckpointStore
from tests.learner.synthetic import make_controller

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[tuple[str, str]]:
    """Yields the endpoint of an empty store, and the URI of a run in its bucket."""
    os.environ.update(CREDENTIALS)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        # All servers of a process share one store.
        urllib.request.urlopen(f"{endpoint}/moto-api/reset", data=b"", timeout=60).close()
        client(endpoint).create_bucket(Bucket=bucket)
        yield endpoint, uri_of(endpoint, f"{bucket}/run")
    finally:
        server.stop()


def client(endpoint: str):
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")


def uri_of(endpoint: str, path: str) -> str:
    address = endpoint.removeprefix("http://")
    return f"s3://{path}?endpoint_override={address}&scheme=http&region=us-east-1"


def keys(endpoint: str, bucket: str = "bucket") -> set[str]:
    """Names of all objects of the run, without folder markers."""
    found = client(endpoint).list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"].removeprefix("run/") for item in found if not item["Key"].endswith("/")}


def write_step(run_dir: Path, step: int, metric: float | None = None) -> Path:
    """Writes one step of a run: a row of metrics, an event file, a checkpoint."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    (run_dir / "tensorboard").mkdir(exist_ok=True)
    with (run_dir / "tensorboard" / f"events.{os.getpid()}").open("a") as file:
        file.write(f"{step} ")
    controller = make_controller(seed=step)
    parts = [b"of every step", str(step - 1).encode(), str(step).encode()]
    archive = {name_of(part): part for part in parts}
    learner_state = {"optimizer": {}, "version": step, "archive": archive}
    store = CheckpointStore(run_dir / "checkpoints", keep_last=2)
    return store.save(step, controller, learner_state, {"next_step": step}, metric)


def history(run_dir: Path) -> list[int]:
    """Steps in the run's metrics."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]

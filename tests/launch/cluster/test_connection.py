"""How programs start Ray or join a cluster: tokens, addresses, two runs on one machine."""

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import ray

from launch.cluster import connection, waiting
from launch.cluster.connection import access, connect, wait_for_nodes
from launch.cluster.signals import Stopped

ROOT = Path(__file__).resolve().parents[3]
SECRET = "a" * 64
CONNECT = """
import sys
from launch.cluster.connection import connect
connect(sys.argv[1])
import ray
print("nodes", len(ray.nodes()), ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def head_node(demanded=""):
    """A pretended head node; yields its address."""

    def answer(_request, context):
        shown = dict(context.invocation_metadata()).get("authorization", "")
        if demanded and shown != f"Bearer {demanded}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    method = grpc.unary_unary_rpc_method_handler(answer)
    service, call = connection.CLUSTER_ID_CALL.strip("/").split("/")
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {call: method})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Records what Ray is asked for, in a home folder and an environment without any token."""
    calls = []
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(connection, "_enable_tokens", lambda: calls.append("tokens"))
    monkeypatch.setattr(connection, "JOIN_LIMIT_S", 1.5)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", connection.MODE, connection.TOKEN, connection.TOKEN_PATH):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return calls


def put_token(home, token):
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(token + "\n")


def test_without_an_address_ray_is_this_programs_own(started, monkeypatch):
    connect()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    connect()
    assert [call["address"] for call in started] == ["local", "auto"]


def test_there_is_one_way_to_start_ray():
    packages = ("envs", "policy", "rollout", "learner", "launch", "benchmarks", "studies")
    files = [path for name in packages for path in (ROOT / name).rglob("*.py")]
    starters = [path.name for path in files if re.search(r"\bray\.init\(", path.read_text())]
    assert starters == ["connection.py"]


def test_a_local_ray_has_a_token_that_is_not_in_the_home_folder(started, tmp_path):
    connect()
    assert len(os.environ[connection.TOKEN]) == 64
    assert not (tmp_path / ".ray").exists()


def test_a_token_that_is_there_is_used(started, tmp_path):
    put_token(tmp_path, SECRET)
    connect()
    assert connection.TOKEN not in os.environ
    assert connection.known_token() == (SECRET, str(tmp_path / ".ray" / "auth_token"))


def test_a_cluster_that_demands_a_token_gets_the_one_of_the_home_folder(started, tmp_path):
    put_token(tmp_path, SECRET)
    with head_node(SECRET) as address:
        connect(address)
    assert started[0] == "tokens"
    assert started[1]["address"] == address


def test_another_token_is_an_authentication_error(started, tmp_path):
    put_token(tmp_path, SECRET)
    message = r"authentication failed: .* does not accept the token from .*auth_token: use the one"
    with head_node("b" * 64) as address, pytest.raises(RuntimeError, match=message):
        connect(address)
    assert not started


def test_a_missing_token_is_named(started):
    with head_node(SECRET) as address, pytest.raises(RuntimeError, match="demands a token and"):
        connect(address)
    assert not started


def test_an_open_cluster_takes_anybody(started):
    with head_node() as address:
        assert access(address) == "open"
        assert access(address, SECRET) == "token accepted"
        connect(address)
    assert started[0]["address"] == address


def test_nobody_at_an_address_is_said_after_a_limit(started):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(RuntimeError, match=rf"no Ray cluster at {address} \(nobody answered"):
        connect(address)
    with pytest.raises(ValueError, match="is a dashboard's"):
        connect("http://127.0.0.1:8265")
    assert not started


def program(home, address="", **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", CONNECT, address],
        env={**clean, "HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_runs_at_once_on_one_machine_have_a_ray_each(tmp_path):
    both = [program(tmp_path), program(tmp_path)]
    try:
        lines = [process.stdout.readline().split() for process in both]
        assert [line[:2] for line in lines] == [["nodes", "1"]] * 2
        assert lines[0][2] != lines[1][2]
        assert [process.communicate("\n", timeout=120) for process in both] == [("", None)] * 2
    finally:
        for process in both:
            process.kill()
    assert not (tmp_path / ".ray").exists(), "no token is left in the home folder"


@pytest.mark.slow
def test_a_real_head_node_with_the_token_of_the_home_folder_is_joined(tmp_path):
    put_token(tmp_path, SECRET)
    ray_command = Path(sys.executable).with_name("ray")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    head = subprocess.Popen(
        [
            *(ray_command, "start", "--head", "--block", f"--port={port}", "--num-cpus=1"),
            *("--disable-usage-stats", "--include-dashboard=false"),
        ],
        env={**clean, "HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        joined = program(tmp_path, f"127.0.0.1:{port}")
        output, _ = joined.communicate("\n", timeout=200)
        assert output.startswith("nodes 1"), output
        other = tmp_path / "other"
        other.mkdir()
        put_token(other, "b" * 64)
        output, _ = program(other, f"127.0.0.1:{port}").communicate("\n", timeout=200)
        assert "RuntimeError: authentication failed" in output
        assert "gcs_client" not in output, "none of Ray's raw lines"
    finally:
        head.terminate()
        head.wait(timeout=60)


def test_a_node_that_never_comes_is_waited_for_within_a_limit(monkeypatch, caplog):
    monkeypatch.setattr(waiting, "SAY_EVERY_S", 0.05)
    monkeypatch.setattr(connection, "ASK_AGAIN_S", 0.02)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    caplog.set_level(logging.INFO)
    with pytest.raises(RuntimeError, match="1 of 2 nodes have joined the cluster after 0 s"):
        wait_for_nodes(2, 0.3, lambda: False)
    assert "waiting for nodes: 1 of 2 have joined the cluster" in caplog.text
    with pytest.raises(Stopped):
        wait_for_nodes(2, 60, lambda: True)
    wait_for_nodes(1, 60, lambda: False)

"""What can end a start early: a port that is taken, and Ctrl-C."""

import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from launch import serve
from launch.cluster.signals import Stopped
from launch.serving import deployment
from launch.serving.config import ServeConfig


def test_a_port_that_is_taken_is_refused_before_anything_slow(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(serve, "connect", lambda _address: pytest.fail("Ray was started"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"127.0.0.1:{port} cannot be used .* another --port"):
            serve.serve(ServeConfig(port=port), Console())


def test_neither_the_program_nor_the_gateway_imports_pytorch():
    code = "import sys, launch.serve, launch.serving.deployment; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_start_ends_when_it_is_asked_to(monkeypatch):
    looks = []
    status = SimpleNamespace(applications={})
    monkeypatch.setattr(deployment.serve, "status", lambda: looks.append(1) or status)
    monkeypatch.setattr(deployment, "START_CHECK_S", 0.0)
    with pytest.raises(Stopped):
        deployment._wait_until_running(60, lambda: len(looks) >= 3)
    assert len(looks) == 3

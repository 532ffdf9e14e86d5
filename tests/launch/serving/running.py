"""A server in processes of its own, as a user starts it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]
START_S = 240
REPLICA = "ray::ServeReplica:latency-budget:replicas"
GATEWAY = "ray::ServeReplica:latency-budget:gateway"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RunningServer:
    """`launch/serve.py` with its Ray cluster."""

    def __init__(self, log, *arguments):
        self.port, self.log = free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        self._sockets = tempfile.mkdtemp(prefix="s", dir="/tmp")  # paths of sockets must be short
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {
            "RAY_TMPDIR": self._sockets,
            "OMP_NUM_THREADS": "1",
            "HOME": str(log.parent),
        }
        command = [
            sys.executable,
            "launch/serve.py",
            *map(str, arguments),
            "--port",
            str(self.port),
        ]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
        self.family = []
        self.wait_until_ready()

    def wait_until_ready(self):
        deadline = time.monotonic() + START_S
        while self.get("/healthz")[0] != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def post(self, body, timeout=60):
        """Status, headers and content of a request for a completion."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, dict(reply.headers), json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), json.loads(error.read())

    def processes(self, title="ray::"):
        """Ray's processes of this server with a title."""
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        found = []
        for process in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def memory_mib(self):
        """Resident memory of gateway and replicas."""
        return sum(p.memory_info().rss for p in self.processes("ServeReplica")) / 2**20

    def stop(self):
        """Asks the server to stop; its exit code."""
        self.processes()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            for process in self.family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(self.family, timeout=30)
            shutil.rmtree(self._sockets, ignore_errors=True)

"""Serves a trained controller over HTTP: OpenAI's chat completions, and a page to try it.

    python launch/serve.py RUN [--option value ...]

Needs the extra `serve`: pip install -c constraints.txt -e '.[serve]'. The models that it offers
are policies: the controller, its rivals, and any configuration by name, such as low-p1-k4-b12.
"""

import sys

from launch.cluster.signals import stop_quietly

if __name__ == "__main__":
    stop_quietly()

import logging
import os
import socket
import threading

import tyro
from rich.console import Console

from launch.cluster.connection import connect, is_own_cluster
from launch.cluster.console import check_first, check_local_paths, one_clear_error
from launch.cluster.signals import Stopped, StopSignals
from launch.cluster.usage import options_from
from launch.serving.config import ServeConfig
from launch.storage.inputs import check_run

REPORT_INTERVAL_MS = 2000
"""How often the processes of a local cluster report their metrics to the node's agent."""

CHECK_S = 0.2
"""How often the program looks whether it was asked to stop."""


def serve(config: ServeConfig, console: Console) -> int:
    """Serves until SIGTERM or Ctrl-C, then finishes what is running."""
    config.token()  # refuses an open address before anything slow
    _check_run(config)
    if is_own_cluster(config.address):
        _check_port(config)
    try:
        from launch.serving import deployment
    except ImportError as error:
        raise RuntimeError(
            f"{error}: install the extra, pip install -c constraints.txt -e '.[serve]'"
        ) from None
    console.print("starting Ray Serve, loading the model ...")
    os.environ.setdefault("RAY_metrics_report_interval_ms", str(REPORT_INTERVAL_MS))
    connect(config.address)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stop, stopped = StopSignals("stopping once no request is running"), threading.Event()
    stop.listen()
    try:
        deployment.start(config, stop.is_set)
    except Stopped:
        if is_own_cluster(config.address):
            return 0  # Ray ends with this program, and nobody has asked anything yet
    else:
        console.print(f"ready: http://{_shown(config.host)}:{config.port}  (Ctrl-C stops)")
    while not stop.is_set():
        stopped.wait(CHECK_S)
    deployment.stop()
    return 0


def _check_run(config: ServeConfig) -> None:
    """Refuses a folder without a controller before Ray is started."""
    if config.run is not None:
        from launch.storage.fetched_run import local_folder
        from learner.checkpoint import find_controller

        find_controller(local_folder(config.run))


def _check_port(config: ServeConfig) -> None:
    """Refuses a port that another program listens on before the model is loaded."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ValueError(
                f"the address {_shown(config.host)}:{config.port} cannot be used "
                f"({error.strerror}): stop what listens there, or give another --port"
            ) from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def command_line() -> ServeConfig:
    """Reads the command line."""
    config = options_from(lambda: tyro.cli(ServeConfig, prog="serve.py", description=__doc__))
    check_local_paths(config)
    check_run(config.run, "RUN")
    return config


def main() -> int:
    """Reads the command line and serves."""
    return serve(command_line(), Console(soft_wrap=True, highlight=False))


if __name__ == "__main__":
    check_first(command_line)
    sys.exit(one_clear_error(main))

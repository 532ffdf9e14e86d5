"""The one way to start Ray, or to join a cluster, and how a cluster authenticates.

Ray gives every process one token mode when it is imported. It starts a local cluster with a token,
and `ray start` one with a token if there is any, but a program that joins a given address uses its
token only if RAY_AUTH_MODE says so; otherwise it retries for 20 seconds and then reports that there
is no cluster. So the cluster is asked before Ray connects.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from launch.cluster.signals import Stopped
from launch.cluster.waiting import Waiting, telling

log = logging.getLogger(__name__)

LOCAL = "local"
"""Ray's name for a cluster of its own, which ends with the program."""

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Ray's environment variables of authentication."""

NICENESS = "RAY_worker_niceness"
"""Ray's environment variable of its workers' priority. Ray's default of 15 lets any other program
push the actors aside, whose latencies are measured."""

JOIN_LIMIT_S = 20.0
"""Time limit for a head node that does not answer yet."""

ASK_LIMIT_S = 3.0
ASK_AGAIN_S = 1.0

CLUSTER_ID_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""The first call of every client of a head node; it has no arguments."""

Access = Literal["open", "token accepted", "token refused", "unreachable", "unknown"]
"""What a head node says: `open` clusters accept any caller, regardless of its token."""


def connect(address: str = "", **options: Any) -> None:
    """Joins the cluster at an address or in RAY_ADDRESS, or starts a local one.

    A local cluster belongs to this program alone: none that happens to run on the machine is
    joined, and no token is left in the home folder.

    Args:
        address: HOST:PORT of a head node, `auto` for a cluster on this machine, `local`, or empty
            for RAY_ADDRESS.
        options: further arguments of `ray.init`.

    Raises:
        ValueError: the address is no head node's.
        RuntimeError: no cluster answers there, or it does not accept our token.
    """
    import ray  # takes a second, and some programs never need it
    from ray.exceptions import AuthenticationError

    target = _target(address)
    options = {"log_to_driver": False, "logging_level": logging.ERROR, **options}
    logging.getLogger("ray").setLevel(logging.ERROR)
    if target == LOCAL:
        log.info("starting a local Ray ...")
        _use_passing_token()
        os.environ.setdefault(NICENESS, "0")
        options = {"include_dashboard": False, **options}
    else:
        log.info("joining the Ray cluster at %s ...", target)
        _prepare_to_join(target)
    try:
        with telling(f"Ray at {target}"):
            ray.init(address=target, **options)
    except AuthenticationError as error:
        raise RuntimeError(f"the Ray cluster at {target} refuses us ({error})") from None
    except ConnectionError as error:
        raise _nobody_at(target, str(error)) from None


def is_own_cluster(address: str) -> bool:
    """Whether `connect` starts a cluster for this program alone, which nothing else can join."""
    return _target(address) == LOCAL


def wait_for_gpu(limit_s: float, is_stopping: Callable[[], bool]) -> None:
    """Waits, up to a limit, until the cluster has a GPU; nodes may join minutes later.

    Args:
        limit_s: time limit in seconds.
        is_stopping: called while waiting; Stopped is raised when it returns True.
    """
    import ray

    waiting = Waiting(limit_s)
    while not ray.cluster_resources().get("GPU", 0) and not waiting.is_over():
        if is_stopping():
            raise Stopped
        waiting.say(lambda: f"a GPU to join the cluster, which has {len(ray.nodes())} nodes")
        time.sleep(ASK_AGAIN_S)


def wait_for_nodes(num_nodes: int, limit_s: float, is_stopping: Callable[[], bool]) -> None:
    """Waits until the cluster has that many nodes.

    Args:
        num_nodes: number of living nodes, the head node included.
        limit_s: time limit in seconds.
        is_stopping: called while waiting; Stopped is raised when it returns True.

    Raises:
        RuntimeError: they have not all joined within the limit.
    """
    import ray

    waiting = Waiting(limit_s)
    while (found := sum(node["Alive"] for node in ray.nodes())) < num_nodes:
        if is_stopping():
            raise Stopped
        if waiting.is_over():
            raise RuntimeError(
                f"{found} of {num_nodes} nodes have joined the cluster after {limit_s:.0f} s: look "
                "at what `ray start` says on the others, or lower --cluster.num-nodes"
            )
        waiting.say(lambda n=found: f"nodes: {n} of {num_nodes} have joined the cluster")
        time.sleep(ASK_AGAIN_S)


def access(address: str, token: str = "") -> Access:
    """Asks a head node, with a token or without one, whether it would let us in.

    Args:
        address: HOST:PORT.
        token: the token to show.
    """
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else None
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(CLUSTER_ID_CALL)
        try:
            call(b"", timeout=ASK_LIMIT_S, metadata=metadata)
        except grpc.RpcError as error:
            code: Any = error.code()  # type: ignore[attr-defined]
            if code == grpc.StatusCode.UNAUTHENTICATED:
                return "token refused"
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return "unreachable"
            return "unknown"
    return "token accepted" if token else "open"


def known_token() -> tuple[str, str]:
    """The token that Ray would use and where it is from; both empty if there is none."""
    if token := os.environ.get(TOKEN, ""):
        return token, TOKEN
    named = os.environ.get(TOKEN_PATH, "")
    path = Path(named) if named else home_token()
    try:
        return path.read_text(encoding="utf-8").strip(), str(path)
    except OSError:
        return "", ""


def home_token() -> Path:
    """The file in which Ray looks for a token if no variable names one."""
    return Path.home() / ".ray" / "auth_token"


def _target(address: str) -> str:
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def _use_passing_token() -> None:
    """Makes Ray use a token that lives as long as this process, unless there is one already.

    Otherwise Ray would write one into the home folder, and `ray job submit` to another cluster
    would fail later.
    """
    if os.environ.get(MODE, "token").lower() == "token" and not known_token()[0]:
        os.environ[TOKEN] = secrets.token_hex(32)


def _prepare_to_join(target: str) -> None:
    """Turns on token authentication if the cluster demands it; refuses what cannot work."""
    if target.startswith(("http://", "https://")):
        raise ValueError(
            f"the Ray address {target} is a dashboard's, which only `ray job submit` uses: give "
            "HOST:PORT of the head node, or unset RAY_ADDRESS for a local cluster"
        )
    if target == "auto" or "://" in target or os.environ.get("RAY_USE_TLS", "0") == "1":
        return  # Ray finds the cluster, or cannot be asked in plain text
    if not re.fullmatch(r"\S+:\d+", target):
        raise ValueError(
            f"the Ray address {target} is not HOST:PORT of a head node: correct it, or unset "
            "RAY_ADDRESS for a local cluster"
        )
    if _wait_for_answer(target) != "token refused":
        return
    token, source = known_token()
    if not token:
        raise RuntimeError(
            f"the Ray cluster at {target} demands a token and there is none here: set {TOKEN}, or "
            f"{TOKEN_PATH}, or copy the head node's {home_token()} (`ray get-auth-token` prints it)"
        )
    if access(target, token) == "token refused":
        raise RuntimeError(
            f"authentication failed: the Ray cluster at {target} does not accept the token from "
            f"{source}: use the one that `ray get-auth-token` prints on its head node"
        )
    _enable_tokens()


def _wait_for_answer(target: str) -> Access:
    """A head node's reply to a caller without a token, as soon as there is one."""
    waiting = Waiting(JOIN_LIMIT_S)
    while (found := access(target)) == "unreachable":
        if waiting.is_over():
            raise _nobody_at(target, f"nobody answered for {JOIN_LIMIT_S:.0f} s")
        waiting.say(lambda: f"the head node at {target} to answer")
        time.sleep(ASK_AGAIN_S)
    return found


def _enable_tokens() -> None:
    """Turns on token authentication for this process and its children, as `ray start` does."""
    from ray._raylet import Config  # pyright: ignore[reportAttributeAccessIssue]

    os.environ[MODE] = "token"
    Config.initialize("")  # the mode was read when Ray was imported


def _nobody_at(target: str, reason: str) -> RuntimeError:
    return RuntimeError(
        f"no Ray cluster at {target} ({reason}): start one with `ray start --head`, or leave the "
        "address out for a local one"
    )

"""Jobs (calls on rollout actors), the slots of the actors that run them, and how both get lost."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from launch.cluster.console import plain
from rollout.actor import ActorFacts, Timed

LOST = (RayActorError, WorkerCrashedError, ObjectLostError, OutOfMemoryError)
"""Exceptions of a call whose actor, node or result is gone."""

WITHOUT_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of actors that request no GPU, from which Ray does not hide any."""

MAX_ERRORS = 3
"""Number of actors on which one call may raise or time out before the run ends."""

MAX_LOSSES = 10
"""Number of actors that may die during one call; the call is rarely the cause of such a death."""

MEMORY_REPORT = re.compile(
    r"[Mm]emory on the node \(IP: ([^,]+),.*?\) was ([\d.]+)GB.*?/ ([\d.]+)GB"
)
"""What Ray's memory monitor says when it kills a process."""


class GroupFailedError(RuntimeError):
    """A call failed on several actors, so the actors are not the cause."""


class InputLostError(RuntimeError):
    """An object that a call needs, such as the weights, was lost with its node."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One call on some rollout actor.

    Attributes:
        what: description for error messages.
        call: starts the call on an actor's handle and returns the reference.
        check: returns what is wrong with a result, or an empty string.
        num_episodes: number of episodes that the call runs, for its time limit.
        sample: split and index of the sample that an actor can prepare in the meantime.
        prefer: name of the actor that should run it, if it is available.
        is_dropped: whether nobody waits for the result any more.
        result: the result, once done.
        num_errors: number of times that the call raised or timed out.
        num_losses: number of times that the process running it died.
    """

    what: str
    call: Callable[[Any], Any]
    check: Callable[[Timed], str] = lambda _timed: ""
    num_episodes: int = 1
    sample: tuple[str, int] | None = None
    prefer: str = ""
    is_dropped: bool = False
    result: Timed | None = None
    num_errors: int = 0
    num_losses: int = 0

    def blame(self, actor: str, cause: str, *, is_error: bool) -> None:
        """Counts one failure; raises GroupFailedError if that is one too many."""
        self.num_errors += is_error
        self.num_losses += not is_error
        if self.num_errors >= MAX_ERRORS or self.num_losses >= MAX_LOSSES:
            raise GroupFailedError(
                f"{self.what} failed on {self.num_errors + self.num_losses} actors, the last time "
                f"on {actor}: {cause}"
            )


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """The place of one rollout actor, across its restarts.

    An actor is `starting` until its model is warm, then `ready`. One that raised at its start is
    `paused` before it starts again; one that failed too often in a row is `given up` for a while.
    Its process exists, and its time limit runs, once the cluster has placed it.
    """

    name: str
    state: Literal["starting", "ready", "paused", "given up"] = "starting"
    handle: Any = None
    incarnation: int = -1
    start_ref: Any = None
    place_ref: Any = None
    is_placed: bool = False
    downloaded: int = -1
    deadline: float = 0.0
    again_at: float = 0.0
    jobs: dict[Any, Job] = field(default_factory=dict)
    failures: int = 0
    facts: ActorFacts | None = None
    busy_s: float = 0.0
    waited_s: float = 0.0
    num_done: int = 0


def lost_its_input(error: BaseException) -> bool:
    """Whether a call could not fetch an object; its actor and its result are not at fault."""
    return isinstance(error, RayTaskError) and isinstance(error, ObjectLostError)


def raised_by_our_code(error: BaseException) -> bool:
    """Whether a call or constructor raised, as opposed to losing its process or node."""
    if isinstance(error, RayTaskError):
        return not isinstance(error, LOST)
    return "error raised in its creation task" in str(error)


def kill(handle: Any) -> None:
    """Kills an actor's process, if there still is one."""
    with contextlib.suppress(Exception):  # it may be dead already
        ray.kill(handle, no_restart=True)


def last_line(reason: object) -> str:
    """The line of a long error message that says what happened."""
    text = plain(str(reason))
    if "running low on memory" in text or MEMORY_REPORT.search(text):
        return _out_of_memory(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error:" in line and not line.startswith("File")]
    return (errors or lines or ["no reason given"])[-1].split(" Some common causes")[0][:300]


def _out_of_memory(text: str) -> str:
    """What Ray's memory monitor reports, without its advice on how to use Ray."""
    used = MEMORY_REPORT.search(text)
    where = (
        f"{used[2]} of {used[3]} GB of node {used[1]} were used" if used else "its node was full"
    )
    return (
        f"Ray's memory monitor killed it because {where}: give the node more memory, or start "
        "fewer actors with --cluster.num-actors"
    )

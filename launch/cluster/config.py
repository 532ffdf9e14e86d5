"""Configuration of the rollout actors, of time limits, of `doctor`, and of faults on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from envs.checks import check_within
from envs.tasks.vqa.config import DataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Rollout actors, and time limits in seconds.

    Attributes:
        address: Ray address; `auto` joins a running cluster. By default RAY_ADDRESS, or else a
            local cluster of this program alone, which ends with it.
        num_nodes: number of nodes to wait for, up to `start_timeout_s`; 0 uses the nodes that are
            there.
        num_actors: number of rollout actors; 0 means one per GPU, or one per CPU core if there is
            no GPU.
        min_actors: the run ends with an error if fewer actors are left.
        start_timeout_s: time limit for an actor to load the model, capture its CUDA graphs and warm
            up.
        group_timeout_s: time limit for one group; an actor that takes longer is replaced.
        step_timeout_s: time limit for a whole batch.
        learner_timeout_s: time limit for one call to the learner.
        max_restarts: number of restarts of one actor in a row without a finished group.
        latency_tolerance: relative deviation of an actor's reference latency from the fleet's
            median above which the log warns about it.
    """

    address: str = ""
    num_nodes: int = 0
    num_actors: int = 0
    min_actors: int = 1
    start_timeout_s: float = 600.0
    group_timeout_s: float = 120.0
    step_timeout_s: float = 1800.0
    learner_timeout_s: float = 300.0
    max_restarts: int = 5
    latency_tolerance: float = 0.15

    def __post_init__(self) -> None:
        check_within(self, "num_nodes", "num_actors", "max_restarts", low=0)
        check_within(self, "min_actors", low=1)
        timeouts = ("start_timeout_s", "group_timeout_s", "step_timeout_s", "learner_timeout_s")
        check_within(self, *timeouts, "latency_tolerance", low=0, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig:
    """What to check besides the cluster of RAY_ADDRESS, if set.

    Attributes:
        tasks: data sets that every node has to have.
        data: where they are; the options of a run's --worker.data.
        show: number of questions per task that are written to a page with their pictures.
        show_page: the page.
    """

    tasks: tuple[str, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    show: int = 0
    show_page: Path = Path("data.html")

    def __post_init__(self) -> None:
        check_within(self, "show", low=0, high=100)


FaultKind = Literal["actor", "learner", "node", "driver", "store"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultConfig:
    """Faults on purpose, to try a cluster before a long run: see `launch.cluster.faults`.

    Attributes:
        every_s: mean time between two random faults, in seconds; 0 injects none.
        kinds: what random faults hit.
        schedule: single faults, such as actor@30 for 30 s after the start.
        seed: seed of the random faults.
    """

    every_s: float = 0.0
    kinds: tuple[FaultKind, ...] = ("actor", "learner")
    schedule: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_within(self, "every_s", "seed", low=0)
        if self.every_s and not self.kinds:
            raise ValueError(f"faults.kinds is empty: name some of {', '.join(FAULT_KINDS)}")
        self.planned()

    @property
    def is_on(self) -> bool:
        """Whether there are any."""
        return bool(self.every_s or self.schedule)

    def planned(self) -> list[tuple[float, FaultKind]]:
        """The schedule in order: seconds since the start, and what is hit.

        Raises:
            ValueError: an entry is not KIND@SECONDS.
        """
        planned: list[tuple[float, FaultKind]] = []
        for entry in self.schedule:
            kind, _, at_s = entry.partition("@")
            if kind not in FAULT_KINDS or not at_s.replace(".", "", 1).isdigit():
                raise ValueError(
                    f"faults.schedule has {entry!r}: write KIND@SECONDS, such as actor@30, with "
                    f"one of {', '.join(FAULT_KINDS)}"
                )
            planned.append((float(at_s), FAULT_KINDS[FAULT_KINDS.index(kind)]))
        return sorted(planned)

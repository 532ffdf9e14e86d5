"""The clocks behind one interface: thread time on a CPU, events on CUDA, or the wall clock.

The device clock counts the device's own time, regardless of what its host did meanwhile. On CUDA,
events do that. Their counterpart on a CPU is the thread's own CPU time, which is the latency as
long as one thread does all the work.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rollout.executor_config import ClockChoice

Mark = Any
"""A point in time; only the clock that made it can read it."""


class Clock(Protocol):
    """Marks points in time without waiting, and reads pairs of them afterwards."""

    @property
    def name(self) -> str:
        """The name that every record carries."""
        ...

    @property
    def waits(self) -> bool:
        """Whether reading times waits for the device."""
        ...

    def mark(self) -> Mark:
        """Records the present time."""
        ...

    def read_ms(self, pairs: Sequence[tuple[Mark, Mark]]) -> list[float]:
        """Milliseconds between the two marks of each pair."""
        ...


class WallClock:
    """Time that passes, whether or not this process runs."""

    name, waits = "wall", False
    mark = staticmethod(time.perf_counter_ns)

    def read_ms(self, pairs: Sequence[tuple[Mark, Mark]]) -> list[float]:
        """Milliseconds between the two marks of each pair."""
        return [(end - start) / 1e6 for start, end in pairs]


class ThreadClock(WallClock):
    """CPU time of the calling thread; time in which other processes run is not counted."""

    name = "thread_cpu_time"
    mark = staticmethod(time.thread_time_ns)


class CudaClock:
    """Events in the current stream of a device, read after one synchronisation."""

    name, waits = "cuda_events", True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Mark:
        """Records an event after everything that was launched so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def read_ms(self, pairs: Sequence[tuple[Mark, Mark]]) -> list[float]:
        """Synchronises once, then reads all pairs."""
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) for start, end in pairs]


def clock_for(device: torch.device, choice: ClockChoice = "device") -> Clock:
    """The clock of a device.

    If several threads share the work of one answer, none of them knows its latency; a CPU then uses
    the wall clock, regardless of the choice.

    Raises:
        ValueError: the device has no clock, or the wall clock is requested on CUDA, where nothing
            waits for the device and the time of launches would be mistaken for latencies.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"no latency clock for device {device}: use cpu or cuda")
    if device.type == "cuda":
        if choice == "wall":
            raise ValueError(
                "the wall clock cannot measure a GPU, which works while the host continues: leave "
                "--worker.executor.clock at device"
            )
        return CudaClock(device)
    if choice == "wall":
        return WallClock()
    return ThreadClock() if torch.get_num_threads() == 1 else WallClock()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """The circumstances of a latency measurement; kept with every profile.

    Attributes:
        device: name of the GPU or the CPU.
        dtype: dtype of the model.
        torch_version: version of torch.
        num_threads: number of threads of the process.
        clock: the clock that measured.
        runtime: how the model decodes (see `rollout.runtime`); profiles that name none are eager.
    """

    device: str
    dtype: str
    torch_version: str
    num_threads: int
    clock: str
    runtime: str = "eager"

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, clock: str, runtime: str) -> DeviceFacts:
        """The facts of this process."""
        is_cuda = device.type == "cuda"
        return cls(
            device=torch.cuda.get_device_name(device) if is_cuda else _cpu_name(),
            dtype=str(dtype).removeprefix("torch."),
            torch_version=torch.__version__,
            num_threads=torch.get_num_threads(),
            clock=clock,
            runtime=runtime,
        )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()

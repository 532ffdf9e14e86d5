"""The clocks behind one interface: `perf_counter_ns` on a CPU, events on CUDA."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Mark = Any
"""A point in time; only the clock that made it can read it."""


class Clock(Protocol):
    """Marks points in time without waiting, and reads pairs of them afterwards."""

    def mark(self) -> Mark:
        """Records the present time."""
        ...

    def read_ms(self, pairs: Sequence[tuple[Mark, Mark]]) -> list[float]:
        """Milliseconds between the two marks of each pair."""
        ...


class CpuClock:
    """Wall clock of this process."""

    mark = staticmethod(time.perf_counter_ns)

    def read_ms(self, pairs: Sequence[tuple[Mark, Mark]]) -> list[float]:
        """Milliseconds between the two marks of each pair."""
        return [(end - start) / 1e6 for start, end in pairs]


class CudaClock:
    """Events in the current stream of a device, read after one synchronisation."""

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


def clock_for(device: torch.device) -> Clock:
    """The clock of a device; raises ValueError for a device without one."""
    if device.type == "cpu":
        return CpuClock()
    if device.type == "cuda":
        return CudaClock(device)
    raise ValueError(f"no latency clock for device {device}: use cpu or cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """The circumstances of a latency measurement; kept with every profile."""

    device: str
    dtype: str
    torch_version: str
    num_threads: int

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> DeviceFacts:
        """The facts of this process."""
        is_cuda = device.type == "cuda"
        return cls(
            device=torch.cuda.get_device_name(device) if is_cuda else _cpu_name(),
            dtype=str(dtype).removeprefix("torch."),
            torch_version=torch.__version__,
            num_threads=torch.get_num_threads(),
        )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()

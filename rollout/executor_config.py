"""How episodes are executed; a command line reads it without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from envs.checks import check_within

ClockChoice = Literal["device", "wall"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorConfig:
    """How episodes are executed.

    Attributes:
        max_new_tokens: maximum length of an answer, in tokens.
        prefill_only: whether the budget covers the prefill alone, without decoding.
        repeats: number of times, an odd one, that an episode is run from the insertion position on
            if its latency is close to its budget; the run with the median latency counts.
        repeat_band: relative distance from the budget that counts as close.
        clock: `device` counts what the device took: CUDA events on a GPU, the CPU time of a worker
            with one thread. `wall`, on a CPU only, counts elapsed time, including that of other
            processes.
    """

    max_new_tokens: int = 64
    prefill_only: bool = False
    repeats: int = 1
    repeat_band: float = 0.05
    clock: ClockChoice = "device"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: give at least one")
        if self.repeats < 1 or self.repeats % 2 == 0:
            raise ValueError(
                f"repeats is {self.repeats}: give an odd number, so that one of them is the median"
            )
        check_within(self, "repeat_band", low=0)

"""How episodes are executed, and on which models the knobs have their full range."""

from __future__ import annotations

from dataclasses import dataclass

from envs.checks import check_within
from envs.spec import FULL_TOP_K, NUM_BLOCKS_TOTAL
from rollout.latency.clock import ClockChoice
from rollout.molmoe import MolmoEConfig


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


def check_knobs_fit(config: MolmoEConfig) -> None:
    """Raises ValueError, naming the knob, for a model to which the knobs do not apply."""
    if config.n_layers != NUM_BLOCKS_TOTAL:
        raise ValueError(
            f"the knob num_blocks is made for {NUM_BLOCKS_TOTAL} decoder blocks and this model has "
            f"{config.n_layers}: give one of {NUM_BLOCKS_TOTAL}"
        )
    if config.top_k != FULL_TOP_K or config.num_experts < FULL_TOP_K:
        raise ValueError(
            f"the knob top_k is made for {FULL_TOP_K} experts per token and this model takes "
            f"{config.top_k} of {config.num_experts}: give one that takes {FULL_TOP_K}"
        )

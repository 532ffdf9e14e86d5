"""Counts operations that are dispatched for a decoded token and for a prefill; runs no kernel.

    python -m benchmarks.gpu.dispatches

The published geometry on the meta device. Norms and attention count as one operation each, as on
CUDA. Views launch nothing, so they are counted apart. A graph counts as one launch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchesConfig:
    """One count.

    Attributes:
        quick: counts a miniature's operations.
    """

    quick: bool = False


QUICK = DispatchesConfig(quick=True)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.random_model import MINIATURE
from rollout.molmoe import MolmoE, MolmoEConfig
from rollout.molmoe.generation import decode_step
from rollout.molmoe.static_cache import FixedShapeDecoder, Part, PlainCalls

PROMPT_TOKENS = 1217
CROPS = 13


@dataclass(slots=True)
class Counts:
    """Numbers of dispatched operations.

    Attributes:
        launching: operations that compute or copy.
        views: operations that do neither.
    """

    launching: int = 0
    views: int = 0


class CountDispatches(TorchDispatchMode):
    """Counts while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_view = any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        self.counts.views += is_view
        self.counts.launching += not is_view
        return func(*args, **(kwargs or {}))


class FusedOnCuda(TorchFunctionMode):
    """Replaces what CUDA does in one operation by another single one with the same shape."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.rms_norm, F.scaled_dot_product_attention):
            return args[0].abs()
        return func(*args, **(kwargs or {}))


class CountLaunches(PlainCalls):
    """Counts the parts that run, which are graphs on a GPU."""

    launches = 0

    def run(self, part: Part) -> None:
        """Counts and calls a part."""
        self.launches += 1
        super().run(part)


@torch.no_grad()
def decode_counts(model: MolmoE, capacity: int) -> dict[str, tuple[Counts, int]]:
    """Operations and launches of one decode step through all blocks, by way to decode."""
    config, device = model.config, model.device
    token_1 = torch.zeros(1, dtype=torch.int64, device=device)
    cache = model.new_cache(capacity)
    prompt = torch.zeros(1, capacity - 8, config.d_model, dtype=model.dtype, device=device)
    model.run_blocks(prompt, 0, config.n_layers, cache=cache)
    with FusedOnCuda(), CountDispatches() as eager:
        decode_step(model, token_1, cache)
    launcher = CountLaunches()
    decoder = FixedShapeDecoder(model, (config.top_k,), capacity, launcher)
    launcher.launches = 0
    with FusedOnCuda(), CountDispatches() as fixed:
        decoder.step([(block, config.top_k) for block in range(config.n_layers)])
    launches = launcher.launches
    return {
        "growing cache": (eager.counts, eager.counts.launching),
        "fixed shape, plain calls": (fixed.counts, fixed.counts.launching),
        "fixed shape, graphs": (fixed.counts, launches),
    }


@torch.no_grad()
def prefill_counts(model: MolmoE, num_tokens: int, num_crops: int) -> dict[str, Counts]:
    """Operations of a prefill, vision apart."""
    config, device = model.config, model.device
    vision, counts = config.vision, {}
    images = torch.zeros(1, num_crops, vision.grid**2, vision.patch_dim, device=device)
    masks = torch.zeros(1, num_crops, vision.grid**2, device=device)
    with FusedOnCuda(), CountDispatches() as counting:
        model.encode_image(images, masks)
    counts["vision and projector"] = counting.counts
    ids = torch.zeros(1, num_tokens, dtype=torch.int64, device=device)
    with FusedOnCuda(), CountDispatches() as counting:
        cache = model.new_cache(num_tokens)
        x_1TD = model.run_blocks(model.embed(ids), 0, config.n_layers, cache=cache)
        model.logits(x_1TD[:, -1]).argmax(-1)
    counts["blocks and head"] = counting.counts
    return counts


def meta_model(config: MolmoEConfig) -> MolmoE:
    """A model without weights, in bfloat16."""
    with torch.device("meta"):
        return MolmoE(config).to(torch.bfloat16)


def main() -> int:
    """Prints a table for the published geometry."""
    options = read_options(QUICK, __doc__)
    model = meta_model(MINIATURE if options.quick else MolmoEConfig())
    print("| one token, 16 blocks, k 8 | operations | views | launches |")
    print("| --- | --- | --- | --- |")
    num_tokens, num_crops = (100, 2) if options.quick else (PROMPT_TOKENS, CROPS)
    for name, (counts, launches) in decode_counts(model, num_tokens + 64).items():
        print(f"| {name} | {counts.launching} | {counts.views} | {launches} |")
    for name, counts in prefill_counts(model, num_tokens, num_crops).items():
        print(f"| prefill: {name} | {counts.launching} | {counts.views} | {counts.launching} |")
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

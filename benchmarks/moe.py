"""Times our MoE layer, mid-size and full-size, against two other implementations.

Example: python -m benchmarks.moe --quick --sizes full --dtypes bfloat16 --tokens 1 64

The others are a plain loop over all experts, as in the published code, and transformers' OLMoE
block with each of its expert implementations. All run in one process, interleaved in random order
(a call that follows a large allocation is slower); the table shows medians with quartiles.
"""

import argparse
import functools
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from benchmarks.published_flow import PlainLoop
from rollout.molmoe import MolmoEConfig
from rollout.molmoe.moe import SparseMoE, grouped_experts, looped_experts

SIZES = {
    "mid": MolmoEConfig(d_model=512, n_heads=8, num_experts=64, expert_hidden=256),
    "full": MolmoEConfig(),
}
TOKENS = (1, 64, 400, 1200)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = ("looped", "grouped")
OTHERS = ("plain loop", "eager", "batched_mm", "grouped_mm")
LARGE_BYTES = 2**30
"""If batched_mm gathers more than this, it is timed only once, after all others."""


def olmoe(ours: SparseMoE, config: MolmoEConfig, top_k: int, implementation: str):
    """Transformers' OLMoE block on the same weights, without copying them."""
    settings = OlmoeConfig(
        hidden_size=config.d_model,
        intermediate_size=config.expert_hidden,
        num_experts=config.num_experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=False,
    )
    settings._experts_implementation = implementation
    with torch.device("meta"):
        block = OlmoeSparseMoeBlock(settings)
    block.gate.weight = torch.nn.Parameter(ours.gate.weight, requires_grad=False)
    block.experts.gate_up_proj = torch.nn.Parameter(ours.gate_up, requires_grad=False)
    block.experts.down_proj = torch.nn.Parameter(ours.down, requires_grad=False)
    return lambda x: block(x[None])[0]


def plain_copy(num_bytes: int) -> Callable[[], object]:
    """Copies this many bytes: those of the k experts' weights that decoding one token reads."""
    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def interleaved(
    ways: dict[str, Callable[[], object]], seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each implementation, interleaved until both limits are reached.

    Every implementation runs for at least `rounds` rounds, and all of them for at least `seconds`.
    """
    for call in ways.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    order, rng = list(ways.items()), random.Random(0)
    while time.perf_counter() < end or len(next(iter(times.values()))) < rounds:
        rng.shuffle(order)
        for name, call in order:
            times[name].append(once_ms(call))
    return times


def once_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less time per row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5, help="minimum number of runs of each")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = 0.5 if options.quick else 10.0
    table = Table(
        "size", "dtype", "tokens", "k", *OURS, *OTHERS, "ours / best other", "copy / ours"
    )
    for size in options.sizes:
        config = SIZES[size]
        for dtype_name in options.dtypes:
            dtype = DTYPES[dtype_name]
            layer = SparseMoE(config).requires_grad_(False)
            for weight in layer.parameters():
                torch.nn.init.normal_(weight, std=0.02)
            layer = layer.to(dtype)
            loop = PlainLoop(layer)
            for tokens in options.tokens:
                for top_k in (4, 8):
                    x = torch.randn(tokens, config.d_model, dtype=dtype)
                    cells = row(layer, loop, config, x, top_k, seconds, options.rounds)
                    table.add_row(size, dtype_name, str(tokens), str(top_k), *cells)
            del layer, loop
    Console(width=220).print(table)
    print("medians in ms with quartiles; *: chosen by our rule; ratios: medians over the rounds;")
    print("copy: a plain copy of the number of bytes of the k experts' weights, at one token")


def row(layer, loop, config, x, top_k, seconds, rounds) -> list[str]:
    """Cells of one row of the table; a dash for an implementation that fails."""

    def ours(function):
        def call():
            probs = F.softmax(layer.gate(x), dim=-1, dtype=torch.float32)
            weights, experts = probs.topk(top_k, dim=-1)
            return function(x, weights.to(x.dtype), experts, layer.gate_up, layer.down)

        return call

    ways = {
        "looped": ours(looped_experts),
        "grouped": ours(grouped_experts),
        "plain loop": lambda: loop(x, top_k),
    }
    expert_bytes = 3 * config.d_model * config.expert_hidden * x.element_size()
    large = {}
    for name in ("eager", "batched_mm", "grouped_mm"):
        call = functools.partial(olmoe(layer, config, top_k, name), x)
        gathers = name == "batched_mm"  # a copy of k experts' weights for every token
        if gathers and len(x) > 64:
            continue
        if gathers and len(x) * top_k * expert_bytes > LARGE_BYTES:
            large[name] = call
            continue
        try:
            call()
        except (RuntimeError, ValueError, KeyError, NotImplementedError):
            continue
        ways[name] = call
    if len(x) == 1:
        ways["copy"] = plain_copy(top_k * expert_bytes)
    times = interleaved(ways, seconds, rounds)
    rule = layer.experts_for(x, top_k)
    chosen = np.array(times["looped" if rule is looped_experts else "grouped"])
    medians = {name: once_ms(call) for name, call in large.items()}
    cells = []
    for name in (*OURS, *OTHERS):
        if name not in times:
            cells.append(f"{medians[name]:.0f}, once" if name in large else "-")
            continue
        low, middle, high = statistics.quantiles(times[name], n=4)
        mark = "* " if times[name] == list(chosen) else ""
        cells.append(f"{mark}{middle:.2f} [{low:.2f} {high:.2f}]")
    others = [np.array(times[name]) for name in OTHERS if name in times]
    cells.append(f"{max(np.median(chosen / other) for other in others):.2f}")
    copy = times.get("copy")
    cells.append("" if copy is None else f"{np.median(np.array(copy) / chosen):.2f}")
    return cells


if __name__ == "__main__":
    main()

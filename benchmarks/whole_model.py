"""Times one decode step: the growing cache, the fixed shape, the published flow.

    python -m benchmarks.whole_model --layers 2

The growing cache is what a CPU decodes with, the fixed shape (here by plain calls) what CUDA graphs
hold, and the published flow that of `benchmarks.published_flow`. At full width with random weights;
`--embedded` takes the model that ships.
"""

import sys
from dataclasses import dataclass

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeModelConfig:
    """One measurement.

    Attributes:
        quick: few steps of the model that ships, to see within a minute that it runs.
        embedded: the model that ships, float32, instead of one at full width.
        layers: number of blocks of the model at full width.
        past: number of tokens in the cache.
        room: number of tokens beyond these that the cache has room for.
        steps: number of steps that are timed.
        threads: number of threads.
    """

    quick: bool = False
    embedded: bool = False
    layers: int = 2
    past: int = 400
    room: int = 64
    steps: int = 40
    threads: int = 2


QUICK = WholeModelConfig(quick=True, embedded=True, past=40, room=8, steps=2, threads=1)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.published_flow import KeysAndValues, PublishedFlow
from rollout.molmoe import MolmoE, MolmoEConfig, load_model
from rollout.molmoe.generation import decode_step
from rollout.molmoe.static_cache import FixedShapeDecoder, PlainCalls
from rollout.worker_config import EMBEDDED


def random_weights(num_layers: int, dtype: torch.dtype) -> MolmoE:
    """A model at full width."""
    model = MolmoE(replace(MolmoEConfig(), n_layers=num_layers))
    for weight in model.parameters():
        weight.normal_(0, 0.02)
    return model.to(dtype)


def ways_to_decode(model: MolmoE, num_past: int, room: int) -> dict[str, Callable[[], object]]:
    """One step after the same prompt, by way to decode."""
    config, token_1 = model.config, torch.tensor([7])
    cache = model.new_cache(num_past + room)
    prompt = torch.randint(0, config.embedding_size, (1, num_past))
    model.run_blocks(model.embed(prompt), 0, config.n_layers, cache=cache)
    published = PublishedFlow(model)
    past: list[KeysAndValues] = []
    for index in range(config.n_layers):
        keys, values = cache.block(index).valid()
        past.append((keys.clone(), values.clone()))
    decoder = FixedShapeDecoder(model, (config.top_k,), num_past + room, PlainCalls())
    decoder.fork(cache, num_past, range(config.n_layers))
    running = [(block, config.top_k) for block in range(config.n_layers)]

    def growing() -> None:
        cache.truncate(num_past)
        decode_step(model, token_1, cache)

    def fixed() -> None:
        decoder.start(token_1, num_past)
        decoder.step(running)

    def theirs() -> None:
        published.past = past
        published.step(token_1[None])

    return {"growing cache": growing, "fixed shape": fixed, "published flow": theirs}


def compare(model: MolmoE, num_past: int, room: int, rounds: int) -> None:
    """Times all ways in turns, after two rounds that do not count."""
    ways = ways_to_decode(model, num_past, room)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number >= 2:
                times[name].append((time.perf_counter() - started) * 1e3)
    ours = statistics.median(times["growing cache"])
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(
            f"{model.dtype} {name}: {middle:.2f} ms per token [{low:.2f} {high:.2f}], "
            f"{middle / ours:.2f} times the growing cache"
        )


@torch.no_grad()
def main() -> int:
    """Measures, and prints one row per way to decode."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(options.threads)
    if options.embedded:
        compare(load_model(EMBEDDED), options.past, options.room, options.steps)
        return 0
    for dtype in (torch.float32, torch.bfloat16):
        model = random_weights(options.layers, dtype)
        compare(model, options.past, options.room, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

"""Times one decode step: the growing cache, the fixed shape, the published flow.

Example: python -m benchmarks.whole_model --layers 2

The growing cache is what a CPU decodes with, the fixed shape (here by plain calls) what CUDA graphs
hold, and the published flow that of `benchmarks.published_flow`. At full width with random weights;
`--embedded` takes the model that ships.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.published_flow import PublishedFlow
from rollout.build import EMBEDDED
from rollout.molmoe import MolmoE, MolmoEConfig, load_model
from rollout.molmoe.fixed_shape import FixedShapeDecoder, PlainCalls
from rollout.molmoe.generation import decode_step


def random_weights(num_layers: int, dtype: torch.dtype) -> MolmoE:
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
    past = [tuple(t.clone() for t in cache.block(i).valid()) for i in range(config.n_layers)]
    published = PublishedFlow(model)
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
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedded", action="store_true", help="the model that ships, float32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--past", type=int, default=400, help="tokens in the cache")
    parser.add_argument("--room", type=int, default=64, help="tokens beyond these")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.embedded:
        compare(load_model(EMBEDDED), options.past, options.room, options.steps)
        return
    for dtype in (torch.float32, torch.bfloat16):
        model = random_weights(options.layers, dtype)
        compare(model, options.past, options.room, options.steps)


if __name__ == "__main__":
    main()

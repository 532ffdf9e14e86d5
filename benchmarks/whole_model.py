"""Times one decode step: our implementation against the published flow, at full width.

Example: python -m benchmarks.whole_model --layers 2

The published flow is that of `benchmarks.published_flow`.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from benchmarks.published_flow import PublishedFlow
from rollout.molmoe import MolmoE, MolmoEConfig
from rollout.molmoe.generation import decode_step


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--past", type=int, default=400, help="tokens in the cache")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for dtype in (torch.float32, torch.bfloat16):
        config = replace(MolmoEConfig(), n_layers=options.layers)
        model = MolmoE(config)
        for weight in model.parameters():
            weight.normal_(0, 0.02)
        model = model.to(dtype)
        cache = model.new_cache(options.past + options.steps + 4)
        prompt = torch.randint(0, 50000, (1, options.past))
        model.run_blocks(model.embed(prompt), 0, config.n_layers, cache=cache)
        past = [tuple(t.clone() for t in cache.block(i).valid()) for i in range(config.n_layers)]
        published = PublishedFlow(model)
        token = torch.tensor([7])
        ours, theirs = [], []
        for step in range(options.steps + 2):
            published.past = past
            started = time.perf_counter()
            decode_step(model, token, cache)
            middle = time.perf_counter()
            published.step(token[None])
            end = time.perf_counter()
            cache.truncate(options.past)
            if step >= 2:
                ours.append((middle - started) * 1e3)
                theirs.append((end - middle) * 1e3)
        for name, times in (("ours", ours), ("published flow", theirs)):
            low, middle_ms, high = statistics.quantiles(times, n=4)
            print(f"{dtype} {name}: {middle_ms:.1f} ms per token [{low:.1f} {high:.1f}]")
        print(f"{dtype} ratio {statistics.median(theirs) / statistics.median(ours):.2f}")


if __name__ == "__main__":
    main()

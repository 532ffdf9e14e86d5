"""Times one decode step: our implementation against the published flow, at full width.

Example: python -m benchmarks.whole_model --layers 2

The published flow concatenates both embedding tables in every forward pass, loops over all
experts, concatenates keys and values into a new cache, and applies the head to every position.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
import torch.nn.functional as F

from benchmarks.moe import PlainLoop
from rollout.molmoe import MolmoE, MolmoEConfig
from rollout.molmoe.generation import decode_step


class PublishedFlow:
    """Decode steps as in the published code, on the same weights."""

    def __init__(self, model: MolmoE, past: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.model, self.past = model, past
        self.loops = [PlainLoop(block.mlp) for block in model.blocks]

    def step(self, token: torch.Tensor) -> torch.Tensor:
        model, config = self.model, self.model.config
        tables = torch.cat([model.wte.embedding, model.wte.new_embedding])
        x = F.embedding(token, tables)
        length = self.past[0][0].shape[2]
        cos, sin = model._rotary.table(length + 1, model.device)
        cos, sin = cos[length], sin[length]
        for block, loop, (keys, values) in zip(model.blocks, self.loops, self.past, strict=True):
            attention = block.attn
            q, k, v = attention.att_proj(attention.attn_norm(x)).chunk(3, -1)
            q, k = attention.q_norm(q), attention.k_norm(k)
            q, k, v = (t.unflatten(-1, (config.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
            q, k = (_turn(t.float(), cos, sin).to(x.dtype) for t in (q, k))
            keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
            out = F.scaled_dot_product_attention(q, keys, values)
            x = x + attention.attn_out(out.transpose(1, 2).flatten(2))
            normed = block.mlp.ff_norm(x)
            x = x + loop(normed[0], config.top_k)[None]
        return model.logits(x).argmax(-1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


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
        published = PublishedFlow(model, past)
        token = torch.tensor([7])
        ours, theirs = [], []
        for step in range(options.steps + 2):
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

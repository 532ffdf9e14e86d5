"""Runs a full-size model with random weights in the published layout on this machine.

Example: python -m benchmarks.full_size --layers 16

Writes a sharded float32 checkpoint (about 29 GB), loads it in bfloat16 in a new process, and
answers one prompt with an image. Prints peak memory and the times of loading, prefill and decode.
The folder is deleted afterwards.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from rollout.molmoe import MolmoE, MolmoEConfig, Preprocessor, load_model
from rollout.molmoe.checkpoint import INDEX, tensor_slots
from rollout.molmoe.generation import decode_step
from rollout.molmoe.preprocess import ModelInputs

SHARD_BYTES = 2 * 10**9


def write(folder: Path, config: MolmoEConfig, *, dtype: torch.dtype = torch.float32) -> int:
    """Writes random shards one by one, so that only one is in memory; returns the bytes.

    They are drawn on the GPU where there is one, which takes seconds instead of minutes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        slots = tensor_slots(MolmoE(config))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    generator = torch.Generator(device).manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    size = total = number = 0
    weight_map: dict[str, str] = {}

    def flush() -> None:
        nonlocal shard, size, number
        file = f"model-{number:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard, size, number = {}, 0, number + 1

    for name, slot in slots.items():
        is_gain = slot.ndim == 1 and name.endswith("weight")
        values = torch.empty(slot.shape, dtype=dtype, device=device)
        std = 0.02 if slot.ndim > 1 else 0.0
        values = values.fill_(1) if is_gain else values.normal_(0, std, generator=generator)
        shard[name] = values.cpu()
        size += values.nbytes
        total += values.nbytes
        if size > SHARD_BYTES:
            flush()
    if shard:
        flush()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


class BarePreprocessor(Preprocessor):
    """A preprocessor without tokenizer files: every prompt has the same 20 tokens."""

    def __init__(self, config: MolmoEConfig) -> None:
        self.config, self.bos = config, config.eos_token_id
        specials = (config.eos_token_id + offset for offset in range(1, 5))
        self.im_start, self.im_end, self.im_patch, self.im_col = specials

    def encode_prompt(self, prompt: str) -> np.ndarray:
        return np.arange(20) + 10

    def decode(self, token_ids: list[int]) -> str:
        return " ".join(map(str, token_ids))


def image_inputs(config: MolmoEConfig) -> ModelInputs:
    """Inputs of a noise image, tiled 3x4, and 20 text ids."""
    pixels = np.random.default_rng(0).integers(0, 255, (700, 940, 3), dtype=np.uint8)
    return BarePreprocessor(config)(Image.fromarray(pixels), "question")


@torch.no_grad()
def run(folder: Path) -> None:
    """Loads the model and answers, in its own process."""
    started = time.perf_counter()
    model = load_model(folder, dtype=torch.bfloat16)
    load_s = time.perf_counter() - started
    inputs = image_inputs(model.config)
    cache = model.new_cache(len(inputs.token_ids) + 40)
    started = time.perf_counter()
    x = model.embed_inputs(inputs)
    vision_s = time.perf_counter() - started
    x = model.run_blocks(x, 0, model.config.n_layers, cache=cache)
    token = model.logits(x[:, -1]).argmax(-1)
    prefill_s = time.perf_counter() - started
    steps = []
    for _ in range(24):
        started = time.perf_counter()
        token = decode_step(model, token, cache)
        int(token)
        steps.append((time.perf_counter() - started) * 1e3)
    low, middle, high = statistics.quantiles(steps[4:], n=4)
    with open("/proc/self/status") as lines:
        status = dict(line.split(":", 1) for line in lines)
    print(f"layers {model.config.n_layers}, {len(inputs.token_ids)} tokens, bfloat16, CPU")
    print(f"load {load_s:.0f} s; vision {vision_s:.1f} s; whole prefill {prefill_s:.1f} s")
    print(f"decode {middle:.0f} ms per token [{low:.0f} {high:.0f}]")
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"peak resident {peak_gb:.1f} GB (mapped shard included), anonymous "
        f"{int(status['RssAnon'].split()[0]) / 1e6:.1f} GB after the answer"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16, help="decoder blocks")
    parser.add_argument("--folder", type=Path, default=None, help="folder for the shards")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.run:
        run(options.folder)
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="full-size-"))
    try:
        started = time.perf_counter()
        total = write(folder, replace(MolmoEConfig(), n_layers=options.layers))
        print(f"wrote {total / 1e9:.1f} GB in {time.perf_counter() - started:.0f} s", flush=True)
        command = [sys.executable, __file__, "--run", "--folder", str(folder)]
        subprocess.run([*command, "--threads", str(options.threads)], check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

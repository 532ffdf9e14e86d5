"""Runs a full-size model with random weights in the published layout on this machine.

    python -m benchmarks.full_size --layers 16

Writes a sharded float32 checkpoint (about 29 GB), loads it in bfloat16 in a new process, and
answers one prompt with an image. Prints peak memory and the times of loading, prefill and decode.
The folder is deleted afterwards.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import read_options
from launch.cluster.console import answer_help, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSizeConfig:
    """One measurement.

    Attributes:
        quick: a miniature instead, to see within a minute that it runs.
        layers: number of decoder blocks.
        folder: folder for the shards; by default a temporary one.
        threads: number of threads.
    """

    quick: bool = False
    layers: int = 16
    folder: Path | None = None
    threads: int = 2


QUICK = FullSizeConfig(quick=True, layers=2)


if __name__ == "__main__":
    answer_help(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from benchmarks.random_model import MINIATURE, BarePreprocessor, write
from rollout.molmoe import MolmoEConfig, load_model
from rollout.molmoe.generation import decode_step
from rollout.molmoe.preprocess import ModelInputs

ROOT = Path(__file__).parents[1]
ANSWER = """
import pathlib, torch
from benchmarks.full_size import run
torch.set_num_threads({threads})
run(pathlib.Path({folder!r}), is_quick={quick})
"""


def geometry(*, is_quick: bool) -> MolmoEConfig:
    """The published geometry, or a miniature."""
    return MINIATURE if is_quick else MolmoEConfig()


def image_inputs(config: MolmoEConfig) -> ModelInputs:
    """Inputs of a noise image, tiled 3x4, and 20 text ids."""
    pixels = np.random.default_rng(0).integers(0, 255, (700, 940, 3), dtype=np.uint8)
    return BarePreprocessor(config)(Image.fromarray(pixels), "question")


@torch.no_grad()
def run(folder: Path, *, is_quick: bool) -> None:
    """Loads the model and answers, in its own process."""
    started = time.perf_counter()
    model = load_model(folder, dtype=torch.bfloat16)
    load_s = time.perf_counter() - started
    inputs = image_inputs(geometry(is_quick=is_quick))
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


def main() -> int:
    """Writes the shards and measures in a new process."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(options.threads)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="full-size-"))
    try:
        started = time.perf_counter()
        config = replace(geometry(is_quick=options.quick), n_layers=options.layers)
        total = write(folder, config)
        print(f"wrote {total / 1e9:.3g} GB in {time.perf_counter() - started:.0f} s", flush=True)
        code = ANSWER.format(threads=options.threads, folder=str(folder), quick=options.quick)
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

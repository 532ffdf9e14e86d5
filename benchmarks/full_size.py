"""Runs a full-size model with random weights in the published layout on this machine.

    python -m benchmarks.full_size --layers 16
    python -m benchmarks.full_size --ray

Writes a sharded float32 checkpoint (about 29 GB), loads it in bfloat16 in a new process, and
answers one prompt with an image. Prints peak memory and the times of loading, prefill and decode.
With `--ray` it trains two steps of the recipe `molmoe-h100` on one CPU actor instead, on two of the
embedded tasks, and prints the peak memory of driver, learner and actor, the seconds of each part of
a step, and the sizes of a step's state and of a checkpoint. The folder is deleted afterwards.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSizeConfig:
    """One measurement.

    Attributes:
        quick: a miniature instead, to see within a minute that it runs.
        ray: trains two steps through Ray, with all decoder blocks.
        layers: number of decoder blocks.
        folder: folder for the shards; by default a temporary one.
        threads: number of threads.
    """

    quick: bool = False
    ray: bool = False
    layers: int = 16
    folder: Path | None = None
    threads: int = 2


QUICK = FullSizeConfig(quick=True, layers=2)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import contextlib
import json
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.random_model import MINIATURE, NARROW, BarePreprocessor, write
from rollout.molmoe import MolmoEConfig, load_model
from rollout.molmoe.generation import decode_step
from rollout.molmoe.preprocess import ModelInputs

ROOT = Path(__file__).parents[1]
EMBEDDED = ROOT / "rollout" / "embedded"
LOOK_EVERY_S, LIMIT_S = 1.0, 7200.0
ROLES = {"joint_grpo.py": "driver", "ray::LearnerActor": "learner", "ray::RolloutActor": "actor"}
"""By a part of a process's command line."""

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


def role_of(process: psutil.Process) -> str:
    """What a process of a run does; empty if it is Ray's own."""
    with contextlib.suppress(psutil.Error):
        line = " ".join(process.cmdline())
        for name, role in ROLES.items():
            if name in line:
                return role
    return ""


def train_two_steps(folder: Path, run_dir: Path, eos_token_id: int) -> None:
    """Runs the recipe in a process of its own, and prints what it needed."""
    shutil.copy(EMBEDDED / "tokenizer.json", folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_token_id}))
    options = {
        "run-dir": run_dir,
        "steps": 2,
        "groups-per-step": 2,
        "num-scored": 1,
        "worker.model": folder,
        "worker.importance": EMBEDDED / "importance_scores.json",
        "worker.device": "cpu",
        "worker.executor.max-new-tokens": 4,
        "cluster.num-actors": 1,
        "cluster.start-timeout-s": 3600,
        "budget.num-samples": 2,
        "evaluation.num-samples": 1,
        "evaluation.num-test-samples": 1,
        "evaluation.num-budgets": 2,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    program = str(ROOT / "launch" / "joint_grpo.py")
    command = [
        sys.executable,
        program,
        "molmoe-h100",
        *words,
        "--worker.tasks",
        "digits",
        "reading",
    ]
    started, peaks = time.perf_counter(), dict.fromkeys(ROLES.values(), 0)
    running = psutil.Popen(command, cwd=ROOT)
    while running.poll() is None:
        if time.perf_counter() - started > LIMIT_S:
            running.kill()
            raise TimeoutError(f"the run is not done after {LIMIT_S:.0f} s: see what it said above")
        for process in (running, *running.children(recursive=True)):
            if role := role_of(process):
                with contextlib.suppress(psutil.Error):
                    peaks[role] = max(peaks[role], process.memory_info().rss)
        time.sleep(LOOK_EVERY_S)
    if running.returncode:
        raise RuntimeError(f"the run ended with {running.returncode}: see what it said above")
    print(f"two steps, evaluations and checkpoints: {time.perf_counter() - started:.0f} s")
    print(
        "peak memory: " + ", ".join(f"{role} {peak / 1e9:.2f} GB" for role, peak in peaks.items())
    )
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if "time/step_s" in row)
    times = {name: value for name, value in last.items() if name.startswith("time/")}
    times.pop("time/episodes_per_s")
    parts = {name.removeprefix("time/")[:-2]: value for name, value in times.items()}
    print("last step: " + ", ".join(f"{name} {value:.2f} s" for name, value in parts.items()))
    newest = max((run_dir / "checkpoints").glob("step_*"))
    size = sum(path.stat().st_size for path in newest.iterdir())
    print(f"a step's state {last['learner/state_mb']:.1f} MB, a checkpoint {size / 1e6:.1f} MB")


def main() -> int:
    """Writes the shards and measures in a new process."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(options.threads)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="full-size-"))
    try:
        started = time.perf_counter()
        config = replace(geometry(is_quick=options.quick), n_layers=options.layers)
        if options.ray:
            narrow = replace(NARROW, embedding_size=288)  # that of the embedded tokenizer
            config = narrow if options.quick else MolmoEConfig()
        total = write(folder, config)
        print(f"wrote {total / 1e9:.3g} GB in {time.perf_counter() - started:.0f} s", flush=True)
        if options.ray:
            with tempfile.TemporaryDirectory() as runs:
                train_two_steps(folder, Path(runs) / "run", config.eos_token_id)
            return 0
        code = ANSWER.format(threads=options.threads, folder=str(folder), quick=options.quick)
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

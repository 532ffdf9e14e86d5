"""How many samples per second loading alone delivers, compared with what a device needs.

    python -m benchmarks.loading
    python -m benchmarks.loading --delay-ms 100
    python -m benchmarks.loading --model FOLDER

Writes pictures of TextVQA's size in TextVQA's layout, and loads them through `SampleLoader` as fast
as possible: opens and decodes the picture, makes the global crop and the inputs of all three tiers,
tokenises the prompt. A group of episodes needs one sample. Nothing else is computed, so the rate is
the maximum that loading allows. CPU time shows what other processes took away.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error
from rollout.worker_config import EMBEDDED


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingConfig:
    """One measurement.

    Attributes:
        quick: tiny sizes, to see within a minute that it runs.
        model: folder with config.json and tokenizer.json, whose geometry is measured; by default
            the embedded model's.
        num_threads: numbers of loading threads to measure; 0 loads each sample when it is needed.
        num_samples: number of samples for each of them.
        num_pictures: number of different pictures.
        width: of a picture, in pixels.
        height: of a picture, in pixels.
        delay_ms: extra time for opening a picture, as on a slow disk.
        groups_per_s: groups per second that one device runs.
    """

    quick: bool = False
    model: Path = EMBEDDED
    num_threads: tuple[int, ...] = (0, 1, 2, 4)
    num_samples: int = 48
    num_pictures: int = 16
    width: int = 1024
    height: int = 768
    delay_ms: float = 0.0
    groups_per_s: float = 20.0


QUICK = LoadingConfig(quick=True, num_threads=(0, 1), num_samples=4, num_pictures=2)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import io
import json
import tempfile
import time

import numpy as np
import torch
from PIL import Image

from envs.spec import TIERS, Sample, Task
from envs.tasks.registry import load_tasks
from envs.tasks.vqa.config import DataConfig
from rollout.molmoe import Preprocessor
from rollout.sample_loader import SampleLoader


class SlowDisk:
    """A task that delivers its samples late.

    Args:
        task: where they come from.
        delay_ms: how late.
    """

    def __init__(self, task: Task, delay_ms: float) -> None:
        self.task = task
        self.delay_ms = delay_ms

    def sample(self, split: str, index: int) -> Sample:
        """The sample, after the delay."""
        time.sleep(self.delay_ms / 1000)
        return self.task.sample(split, index)

    def score(self, sample: Sample, answer: str) -> float:
        """As the task itself."""
        return self.task.score(sample, answer)


def photograph(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG with as much detail as a photograph: noise of several scales."""
    rng, width, height = np.random.default_rng(seed), *size
    pixels = np.zeros((height, width, 3))
    for side, contrast in ((4, 90.0), (32, 50.0), (256, 25.0)):
        coarse = rng.normal(0, contrast, (side, side, 3)).clip(-127, 127) + 128
        image = Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        pixels += np.asarray(image) - 128.0
    buffer = io.BytesIO()
    Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_text_vqa(folder: Path, config: LoadingConfig) -> float:
    """Writes pictures and questions as TextVQA has them; returns the mean size of a file in kB."""
    (folder / "train_images").mkdir()
    sizes = []
    for number in range(config.num_pictures):
        content = photograph(number, (config.width, config.height))
        (folder / "train_images" / f"{number:016x}.jpg").write_bytes(content)
        sizes.append(len(content) / 1000)
    for split in ("train", "val"):
        rows = [
            {
                "question_id": number,
                "image_id": f"{number:016x}",
                "question": "what is the name of the brand on the second bottle from the left?",
                "answers": ["dakota"] * 10,
            }
            for number in range(config.num_pictures)
        ]
        (folder / f"TextVQA_0.5.1_{split}.json").write_text(json.dumps({"data": rows}))
    return float(np.mean(sizes))


def measured_s(loader: SampleLoader, num_samples: int) -> tuple[float, float]:
    """Wall and CPU seconds for these samples, with as many ahead as the loader keeps."""
    ahead = 2 * loader.num_threads
    loader.load("test", 0).inputs(TIERS[-1])
    started, cpu_started = time.perf_counter(), time.process_time()
    for index in range(ahead):
        loader.prepare("test", index)
    for index in range(num_samples):
        prepared = loader.load("test", index)
        if index + ahead < num_samples:
            loader.prepare("test", index + ahead)
        for tier in TIERS:
            prepared.inputs(tier)
    return time.perf_counter() - started, time.process_time() - cpu_started


def main() -> int:
    """Measures, and prints one row per number of threads."""
    config = read_options(QUICK, __doc__)
    torch.set_num_threads(1)
    preprocessor = Preprocessor.from_pretrained(config.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size_kb = write_text_vqa(folder, config)
        data = DataConfig(sources={"text_vqa": str(folder)}, validation_share=0.0)
        task = SlowDisk(load_tasks(["text_vqa"], data)["text_vqa"], config.delay_ms)
        print(
            f"pictures of {config.width} x {config.height}, {size_kb:.0f} kB, opened in "
            f"{config.delay_ms:g} ms more; crops of {preprocessor.config.vision.image_size} pixels"
        )
        target = f"of {config.groups_per_s:g}/s"
        print(f"{'threads':>7}  {'samples/s':>9}  {'CPU ms each':>11}  {target}")
        for num_threads in config.num_threads:
            loader = SampleLoader(task, preprocessor, num_threads)
            wall_s, cpu_s = measured_s(loader, config.num_samples)
            rate, cpu_ms = config.num_samples / wall_s, 1000 * cpu_s / config.num_samples
            share = rate / config.groups_per_s
            print(f"{num_threads:7d}  {rate:9.1f}  {cpu_ms:11.1f}  {share:.2f} x")
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

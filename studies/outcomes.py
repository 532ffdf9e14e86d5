"""Scores of all 225 configurations of the small model on many samples, without latencies.

    python -m studies.outcomes OUT --split train --num-samples 1024

Answers are decoded off the clock, where configurations share the blocks that they have in common.
One .npz for each 128 samples; a repeated command skips those that exist, and several processes
share the work by --part.

Shapes: S samples of a file, C configurations.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from benchmarks.options import needed, read_options
from envs.spec import all_knobs
from launch.cluster.console import one_clear_error
from rollout.build import build_worker
from rollout.requests import ScoreRequest
from rollout.worker_config import WorkerConfig

FILE_SAMPLES = 128
ACTIONS_1C4 = np.array([[knobs.indices() for knobs in all_knobs()]])


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomesConfig:
    """One set of outcomes.

    Attributes:
        quick: one sample, into a temporary folder.
        out: folder for the files.
        split: split of the samples.
        num_samples: number of samples, from the first of the split on.
        part: this process' part of the files, and the number of parts.
    """

    quick: bool = False
    out: Annotated[Path | None, tyro.conf.Positional] = None
    split: str = "train"
    num_samples: int = 1024
    part: tuple[int, int] = (0, 1)


QUICK = OutcomesConfig(quick=True, num_samples=1)


def main() -> int:
    """Scores the samples that no file holds yet."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(1)
    if not options.quick:
        score_all(options, needed(options.out, "OUT, a folder for the outcomes,"))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        score_all(options, options.out or Path(folder))
    return 0


def score_all(options: OutcomesConfig, out: Path) -> None:
    """Writes the files of one part that are absent."""
    out.mkdir(parents=True, exist_ok=True)
    worker = build_worker(WorkerConfig(device="cpu", dtype="float32"))
    part, parts = options.part
    for start in range(part * FILE_SAMPLES, options.num_samples, parts * FILE_SAMPLES):
        file = out / f"{start:06d}.npz"
        if file.exists():
            continue
        began = time.monotonic()
        indices = range(start, min(start + FILE_SAMPLES, options.num_samples))
        requests = [
            ScoreRequest(split=options.split, indices=(index,), actions_SE4=ACTIONS_1C4)
            for index in indices
        ]
        scores_SC = np.concatenate([worker.score(request) for request in requests])
        np.savez_compressed(file, index=np.array(indices), scores=scores_SC.astype(np.float16))
        print(f"{file}: mean {scores_SC.mean():.3f}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

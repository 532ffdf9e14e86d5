"""How steady the clocks are: the same episodes on a quiet machine and next to other work.

    python -m benchmarks.clock --out clock.json

Both clocks time the same runs. Ratios are to the quiet machine's median; the coefficient of
variation is that of repeats of one sample, averaged over samples.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockConfig:
    """One measurement.

    Attributes:
        quick: tiny sizes, to see within a minute that it runs.
        out: JSON file for the results; none is written by default.
        repeats: number of runs of each configuration on each sample under each load.
        num_samples: number of samples.
        num_loads: number of processes that disturb the machine.
        settle_s: seconds between the start of these processes and the first run.
    """

    quick: bool = False
    out: Path | None = None
    repeats: int = 60
    num_samples: int = 6
    num_loads: int = 2
    settle_s: float = 5.0


QUICK = ClockConfig(quick=True, repeats=2, num_samples=1, num_loads=1, settle_s=0.2)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS
from launch.cluster.progress import counted
from rollout.build import build_worker
from rollout.worker_config import WorkerConfig

BUSY_LOOP = "while True: pass"
MATRIX_LOOP = (
    "import torch; torch.set_num_threads(1); a = torch.rand(1024, 1024)\n"
    "while True: a = torch.tanh(a @ a)"
)
LOADS = {"quiet": "", "next to busy loops": BUSY_LOOP, "next to matrix products": MATRIX_LOOP}


@contextmanager
def beside(code: str, count: int, settle_s: float = 5.0) -> Iterator[None]:
    """Runs the block while processes run this code; they get some seconds to start."""
    processes = [
        subprocess.Popen([sys.executable, "-c", code]) for _ in range(count if code else 0)
    ]
    try:
        time.sleep(settle_s if processes else 0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> int:
    """Measures, and prints one row per load, configuration and clock."""
    config = read_options(QUICK, __doc__)
    torch.set_num_threads(1)
    worker = build_worker(WorkerConfig(device="cpu"))
    worker.warm_up()
    runs: dict[tuple[str, str, str], np.ndarray] = {}
    for load, code in LOADS.items():
        with beside(code, config.num_loads, config.settle_s):
            for name, knobs in (("cheapest", CHEAPEST_KNOBS), ("full", FULL_KNOBS)):
                done = [
                    [worker.execute(knobs, "test", index)[0] for index in range(config.num_samples)]
                    for _ in counted(range(config.repeats), f"repeats {load}, {name}")
                ]
                runs[load, name, "thread"] = np.array([[e.latency_ms for e in es] for es in done])
                runs[load, name, "wall"] = np.array([[e.wall_ms for e in es] for es in done])
    rows = []
    for (load, name, clock), latencies_RN in runs.items():
        median = float(np.median(latencies_RN))
        quiet = float(np.median(runs["quiet", name, clock]))
        variation = float((latencies_RN.std(0, ddof=1) / latencies_RN.mean(0)).mean())
        row = {"load": load, "configuration": name, "clock": clock, "median_ms": median}
        rows.append({**row, "over_quiet": median / quiet, "variation": variation})
        print(
            f"{load:24}{name:10}{clock:8}{median:8.1f} ms  x {median / quiet:.2f}  "
            f"variation {variation:.3f}"
        )
    if config.out is not None:
        config.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

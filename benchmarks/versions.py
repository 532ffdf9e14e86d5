"""Times whole episodes of this checkout and of another one, in turns, to show what a change costs.

    python -m benchmarks.versions ../other --pairs 9

Each checkout runs in a process of its own with one thread. Both run the same configurations on the
same sample of the embedded model, one after the other in alternating order; latencies are CPU time.
Two processes with the same code differ by up to 2 %, so several pairs of them are compared, each on
a third of the configurations and on a sample of its own. `--quick` compares
this checkout with itself.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.options import needed, read_options
from launch.cluster.console import check_first, one_clear_error

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionsConfig:
    """One comparison.

    Attributes:
        quick: this checkout against itself on few configurations, to see that it runs.
        other: another checkout of this project.
        pairs: number of pairs of processes.
        stride: each pair runs every `stride`-th configuration.
    """

    quick: bool = False
    other: Annotated[Path | None, tyro.conf.Positional] = None
    pairs: int = 9
    stride: int = 3


QUICK = VersionsConfig(quick=True, other=ROOT, pairs=1, stride=50)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import json
import os
import subprocess

import numpy as np

from launch.cluster.progress import counted

SERVE = """
import json, sys
from envs.spec import all_knobs
from rollout.build import WorkerConfig, build_worker
worker, every = build_worker(WorkerConfig()), list(all_knobs())
worker.warm_up()
print("ready", flush=True)
for line in sys.stdin:
    number, index = json.loads(line)
    execution, _ = worker.execute(every[number], "test", index)
    print(json.dumps([execution.latency_ms, execution.answer]), flush=True)
"""
NUM_CONFIGURATIONS = 225


class Checkout:
    """A process that runs episodes with the code of one folder."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def run(self, number: int, index: int) -> tuple[float, str]:
        """Latency in ms and answer of a configuration on a sample."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([number, index]) + "\n")
        self.process.stdin.flush()
        latency_ms, answer = json.loads(self._read())
        return latency_ms, answer

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(here: Path, there: Path, pair: int, stride: int) -> tuple[float, int]:
    """Mean logarithm of the ratio of latencies in a new pair of processes; differing answers."""
    folders = (here, there) if pair // stride % 2 else (there, here)
    started = [Checkout(folder) for folder in folders]  # which one comes first may matter
    ours, theirs = started if folders[0] == here else reversed(started)
    logs, differing = [], 0
    for number in range(pair % stride, NUM_CONFIGURATIONS, stride):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        runs = {checkout: checkout.run(number, pair) for checkout in order}
        logs.append(np.log(runs[ours][0] / runs[theirs][0]))
        differing += runs[ours][1] != runs[theirs][1]
    ours.close()
    theirs.close()
    return float(np.mean(logs)), differing


def main() -> int:
    """Compares, and prints the mean ratio of latencies."""
    options = read_options(QUICK, __doc__)
    there = needed(options.other, "OTHER, another checkout of this project,").resolve()
    pairs = counted(range(options.pairs), "pairs of processes")
    results = [compare(ROOT, there, pair, options.stride) for pair in pairs]
    logs, rng = np.array([log for log, _ in results]), np.random.default_rng(0)
    means = [rng.choice(logs, len(logs)).mean() for _ in range(2000)]
    low, high = np.exp(np.quantile(means, (0.025, 0.975)))
    print(
        f"latency here over there, {len(logs)} pairs of processes: mean {np.exp(logs.mean()):.4f}, "
        f"95 % interval {low:.4f} to {high:.4f}; each: {np.exp(logs).round(3).tolist()}; "
        f"{sum(number for _, number in results)} answers differ"
    )
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

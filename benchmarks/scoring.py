"""Outcomes per second of device time: answers off the clock in batches, and measured episodes.

    python -m benchmarks.scoring

Random configurations of the small model, four of each sample, at one tier. Episodes run one after
another in groups of two, as in training. Batches take from one to 64 pairs of sample and
configuration; their time includes cutting and encoding the image. What scoring does to latencies
measured beside it is the latency of one episode right after a batch, over that right after other
episodes, in turns. One thread, thread time, medians with quartiles.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.options import read_options
from envs.checks import check_within
from launch.cluster.console import check_first, one_clear_error

BATCHES = (1, 4, 12, 24, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringConfig:
    """One measurement.

    Attributes:
        quick: tiny sizes, to see within a minute that it runs.
        batches: numbers of pairs that are answered in one pass.
        rounds: number of batches of each size, and of pairs of episodes.
    """

    quick: bool = False
    batches: tuple[int, ...] = BATCHES
    rounds: int = 16

    def __post_init__(self) -> None:
        check_within(self, "rounds", low=1)


QUICK = ScoringConfig(quick=True, batches=(1, 4), rounds=1)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.budget_row import spread
from envs.spec import Knobs, Sample
from launch.cluster.progress import counted
from launch.run.scores import CONFIGURATIONS, drawn
from rollout.build import build_worker
from rollout.group_sharing import run_configurations
from rollout.worker import RolloutWorker
from rollout.worker_config import WorkerConfig

OF_A_SAMPLE = 4


class Bench:
    """A worker, and samples that no two measurements share."""

    def __init__(self, worker: RolloutWorker) -> None:
        self.worker, self.rng, self.next = worker, np.random.default_rng(0), 0

    def sample(self) -> Sample:
        """A new sample, rendered before the clock starts."""
        self.next += 1
        return self.worker.tasks.sample("validation", self.next)

    def actions(self, count: int) -> np.ndarray:
        """Choice indices of random configurations of one tier, as in training, [count, 4]."""
        return drawn(CONFIGURATIONS[:0], count, [0, self.next])

    def score(self, num_pairs: int) -> float:
        """Time of a batch in ms for each of its pairs."""
        counts = [OF_A_SAMPLE] * (num_pairs // OF_A_SAMPLE) + [num_pairs % OF_A_SAMPLE]
        asked_of = [(self.sample(), self.actions(count)) for count in counts if count]

        def work() -> None:
            scorer = self.worker.scorer
            pairs = [scorer.embedded(sample, actions) for sample, actions in asked_of]
            scorer.answers([pair for of_sample in pairs for pair in of_sample])

        return timed_ms(work) / num_pairs

    def episodes(self) -> float:
        """Time of a group of two episodes in ms for each of them."""
        sample = self.sample()
        actions = CONFIGURATIONS[self.rng.choice(len(CONFIGURATIONS), 2, replace=False)]
        knobs = [Knobs.from_indices(indices) for indices in actions.tolist()]
        return timed_ms(lambda: run_configurations(self.worker.executor, sample, knobs)) / 2

    def latency_after(self, work: Callable[[], object]) -> float:
        """Latency of a fixed episode right after some work, in ms."""
        work()
        return self.worker.reference_latency_ms(repeats=1)


def timed_ms(work: Callable[[], object]) -> float:
    """Thread time of some work, ms."""
    started = time.thread_time()
    work()
    return (time.thread_time() - started) * 1e3


def main() -> int:
    """Prints time per outcome, and what scoring does to latencies."""
    options = read_options(QUICK, __doc__)
    torch.set_num_threads(1)
    bench = Bench(build_worker(WorkerConfig(device="cpu", dtype="float32")))
    for _ in range(3):
        bench.episodes()
        bench.score(max(options.batches))
    kinds: dict[str, Callable[[], float]] = {"episodes": bench.episodes}
    for num_pairs in options.batches:
        kinds[f"batches of {num_pairs}"] = lambda n=num_pairs: bench.score(n)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    # In turns, because the machine's speed drifts.
    for _ in counted(range(options.rounds), "rounds"):
        for name, work in kinds.items():
            times[name].append(work())
    print("ms of device time for each outcome, and how many times as many as by episodes:")
    base = np.array(times["episodes"])
    for name, values in times.items():
        ratio = np.median(base) / np.median(values)
        print(f"  {name:>14}: {spread(np.array(values), 1)} ms, {ratio:.2f} x")
    pairs = [
        [bench.latency_after(work) for work in (lambda: bench.score(24), bench.episodes)]
        for _ in range(2 * options.rounds)
    ]
    ratios = np.divide(*np.array(pairs).T)
    half = 1.96 * ratios.std() / np.sqrt(len(ratios))
    print(
        f"latency of an episode after a batch over that after episodes: {spread(ratios)}, "
        f"mean {ratios.mean():.3f} ± {half:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

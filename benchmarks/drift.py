"""How well a worker follows the speed of its device.

    python -m benchmarks.drift --workers 2 --seconds 100

Each worker runs the cheapest and the full configuration on a few samples repeatedly. The
imperfection of a clock is the scatter between repeats of the same work: in milliseconds of the
device, corrected by probes alone, and corrected by probes and the pace of the global crop, as in a
run.

Shapes: N repeats, C clocks.
"""

import sys
from dataclasses import dataclass

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftConfig:
    """One measurement.

    Attributes:
        quick: tiny sizes, to see within a minute that it runs.
        workers: number of workers at the same time, each in a process of its own.
        seconds: duration.
    """

    quick: bool = False
    workers: int = 2
    seconds: float = 100.0


QUICK = DriftConfig(quick=True, workers=1, seconds=2.0)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import multiprocessing
import time

import numpy as np
import torch

from envs.calibration import Calibration
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS
from envs.tasks import build_tasks
from rollout.build import build_executor
from rollout.latency.drift import FollowedTime, Pace
from rollout.worker import RolloutWorker
from rollout.worker_config import WorkerConfig

NUM_SAMPLES = 24
CALIBRATION_ROUNDS = 5
CLOCKS = ("of the device", "corrected by probes", "corrected by probes and pace")


def repeats(seed: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """What ran, int [N, 2] (sample, configuration), and its log latency on every clock, [N, C]."""
    torch.set_num_threads(1)
    worker = RolloutWorker(
        build_executor(WorkerConfig(device="cpu", dtype="float32")), build_tasks()
    )
    worker.warm_up()
    latencies = [
        [worker.extreme_latencies("validation", index) for index in range(4)]
        for _ in range(CALIBRATION_ROUNDS)
    ]
    calibration = Calibration.of_latencies(np.array(latencies))

    def measure(number: int) -> tuple[float, float]:
        cheapest, full = worker.extreme_latencies("validation", number)
        return cheapest, full

    clocks = [FollowedTime(calibration, measure, p) for p in (Pace(), worker.executor.pace)]
    rng, ends, what, log_ms = np.random.default_rng(seed), time.monotonic() + seconds, [], []
    while time.monotonic() < ends:
        index = int(rng.integers(NUM_SAMPLES))
        for number, knobs in enumerate((CHEAPEST_KNOBS, FULL_KNOBS)):
            for clock in clocks:
                clock.follow()
            device_ms = worker.execute(knobs, "test", index)[0].latency_ms
            what.append((index, number))
            log_ms.append(np.log([device_ms, *(c.to_calibrated(device_ms) for c in clocks)]))
    return np.array(what), np.array(log_ms)


def scatter(what_N2: np.ndarray, log_ms_NC: np.ndarray) -> np.ndarray:
    """Standard deviation of log latencies around the median of equal work, [C]."""
    rest_NC = log_ms_NC.copy()
    for same in np.unique(what_N2, axis=0):
        rows = (what_N2 == same).all(1)
        rest_NC[rows] -= np.median(rest_NC[rows], axis=0)
    return rest_NC.std(0)


def main() -> int:
    """Measures, and prints one row per worker."""
    options = read_options(QUICK, __doc__)
    jobs = [(seed, options.seconds) for seed in range(options.workers)]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for seed, (what, log_ms) in enumerate(pool.starmap(repeats, jobs)):
            figures = zip(CLOCKS, scatter(what, log_ms), strict=True)
            text = ", ".join(f"{name} {value:.3f}" for name, value in figures)
            print(f"worker {seed}, {len(what)} episodes: scatter of log milliseconds {text}")
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

"""A device that changes its speed in the middle of a run, on a table with known latencies."""

from dataclasses import replace

import numpy as np
import pytest

from launch.analysis.greedy_sweep import GreedySweep, greedy_sweep
from launch.joint_grpo import train
from launch.run.recipes import embedded_grpo
from launch.run.state import Run
from launch.run.warm_start import warm_start_from_profile
from learner.config import EntropySchedule
from rollout.latency.drift import FollowedTime
from rollout.simulation.table_fleet import TableFleet
from rollout.simulation.table_samples import calibration_of, extreme_latencies
from studies.table_run import quiet_settings, table_run
from tests import table_rig

STEPS = 100


class DriftingFleet(TableFleet):
    """A table on a device that is 30 % slower from half of the run on.

    Time on the device passes as its episodes and probes take, and only the probes tell how fast it
    is. Without `follows`, budgets stay those of the calibration.
    """

    def __init__(self, table, *, follows: bool) -> None:
        like = table_rig.fleet_of(table)
        super().__init__(like.splits, like.blocks)
        self.table, self.seconds, self.num_batches = table, 0.0, 0
        if follows:
            calibration = calibration_of(table)
            self.present = FollowedTime(calibration, self.probe, now=lambda: self.seconds)

    def probe(self, number: int) -> tuple[float, float]:
        cheapest, full = (extreme_latencies(self.table)[number] * self.slowdown).tolist()
        self.seconds += (cheapest + full) / 1e3
        return cheapest, full

    def outcomes(self, request, table, row, columns_G):
        if isinstance(self.present, FollowedTime):
            self.present.follow()
        scores_G, latencies_G = super().outcomes(request, table, row, columns_G)
        self.seconds += float(latencies_G.sum()) * self.slowdown / 1e3
        return scores_G, latencies_G

    def collect(self, ticket):
        self.slowdown = 1.3 if self.num_batches >= STEPS // 2 else 1.0
        self.num_batches += 1
        return super().collect(ticket)


def learned(tmp_path, fleet: TableFleet, weights) -> GreedySweep:
    """The greedy sweep at the end of a short run, over the whole table."""
    run = drifting_run(tmp_path, fleet)
    run.learner.controller.load_numpy(weights)
    train(run)
    table = fleet.splits["train"].table
    return greedy_sweep(
        fleet,
        run.setup,
        run.learner.weights(),
        split="validation",
        indices=range(len(table.sample_ids)),
        budgets_ms=run.setup.budgets.evenly(9).tolist(),
    )


def drifting_run(tmp_path, fleet: TableFleet) -> Run:
    """A run whose policy hardly moves, so that only what the device does shows."""
    base = embedded_grpo()
    learner = replace(
        base.learner,
        learning_rate=3e-5,
        epochs=2,
        entropy=EntropySchedule(start=0.005, end=0.001, steps=200),
        lr_steps=200,
    )
    pid = replace(base.pid, target=0.035, initial=1.0, minimum=0.5, maximum=4.0)
    base = replace(base, learner=learner, pid=pid)
    settings = quiet_settings(base, seed=0, steps=STEPS)
    return table_run(tmp_path, settings, fleet)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_device_that_slows_down_changes_neither_accuracy_nor_violations(tmp_path):
    table = table_rig.synthetic_table(240)
    start = drifting_run(tmp_path / "start", table_rig.fleet_of(table))
    controller = start.learner.controller
    full_ms = start.calibration.full_ms
    warm_start_from_profile(start.learner, table, start.setup, start.fleet, full_ms=full_ms)
    weights = controller.to_numpy()
    steady = learned(tmp_path / "steady", table_rig.fleet_of(table), weights)
    followed = learned(tmp_path / "followed", DriftingFleet(table, follows=True), weights)
    ignored = learned(tmp_path / "ignored", DriftingFleet(table, follows=False), weights)
    for name, result in (("steady", steady), ("followed", followed), ("ignored", ignored)):
        print(f"{name}: {result.in_budget_accuracy:.4f}, {result.violation_rate:.2%} violations")
    assert followed.violation_rate == pytest.approx(steady.violation_rate, abs=0.01)
    assert followed.in_budget_accuracy == pytest.approx(steady.in_budget_accuracy, abs=0.01)
    assert np.allclose(followed.device_budgets_ms, 1.3 * followed.budgets_ms, rtol=1e-3)
    assert ignored.violation_rate > steady.violation_rate + 0.1, "without probes the change shows"

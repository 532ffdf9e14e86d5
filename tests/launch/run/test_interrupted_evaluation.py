"""An evaluation that is interrupted is made up for, with the figures of an undisturbed one."""

import itertools
import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.cluster.signals import Stopped
from launch.joint_grpo import train
from launch.run.recipes import EvaluationConfig
from launch.run.reporting import Reporter
from rollout.fleet import FleetStats
from tests import launch_rig


class Killed(BaseException):
    """An error that no handler of the program catches."""


def evaluations(folder):
    """Held-out figures by step, as the run's JSON lines have them; a repeated row fails."""
    found = {}
    for row in map(json.loads, (folder / "metrics.jsonl").open()):
        if "at_a_glance/accuracy_held_out" in row:
            assert row["step"] not in found
            found[row["step"]] = {k: v for k, v in row.items() if not k.startswith("time/")}
    return found


def metrics(run):
    return {step: run.store.load(run.store.root / f"step_{step:08d}").metric for step in (1, 2)}


@pytest.fixture(scope="module")
def settings():
    evaluation = EvaluationConfig(every=1, num_samples=2, num_test_samples=2, num_budgets=2)
    return launch_rig.config(steps=2, groups_per_step=1, keep_last=9, evaluation=evaluation)


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    run = launch_rig.local_run(tmp_path_factory.mktemp("undisturbed"), settings)
    train(run)
    return run


def failing(original, error, number, is_counted=lambda *_a, **_k: True):
    """A function that raises in place of its call of this number, among those that count."""
    calls = itertools.count()

    def call(*arguments, **named):
        if is_counted(*arguments, **named) and next(calls) == number:
            raise error
        return original(*arguments, **named)

    return call


@pytest.mark.parametrize(
    ("moment", "number", "error"),
    [("sweep", 0, Killed), ("sweep", 1, Stopped), ("report", 2, Killed), ("commit", 0, Killed)],
)
def test_it_is_made_up_for_on_resume(tmp_path, settings, undisturbed, moment, number, error):
    first = launch_rig.local_run(tmp_path, settings)
    if moment == "sweep":
        first.fleet.cheapest_ms = failing(first.fleet.cheapest_ms, error, number)
    elif moment == "report":  # after the rows, between two figures
        first.reporter.figure = failing(first.reporter.figure, error, number)
    else:

        def has_metric(*arguments):
            return arguments[4] is not None

        first.store.save = failing(first.store.save, error, number, has_metric)
    with pytest.raises(error):
        train(first)
    if error is Stopped:
        first.commit()
    second = launch_rig.local_run(tmp_path, settings)
    assert second.evaluation_pending
    train(second)
    assert not second.evaluation_pending
    assert evaluations(tmp_path) == evaluations(undisturbed.store.root.parent)
    assert metrics(second) == metrics(undisturbed)
    assert second.store.best().name == undisturbed.store.best().name


def test_going_back_drops_the_rows_of_undone_steps(tmp_path):
    reporter = Reporter(tmp_path, num_steps=9, clock="test")
    reporter.begin_at(0)
    for step in range(4):
        reporter.scalars(step, {"reward/mean": float(step)})
    time.sleep(1.1)  # TensorBoard orders its files by the second of their names
    reporter.begin_at(2)
    for step in range(2, 5):
        reporter.scalars(step, {"reward/mean": 10.0 + step})
    reporter.close()
    assert [(r["step"], r["reward/mean"]) for r in reporter.rows()] == [
        *((0, 0.0), (1, 1.0)),
        *((2, 12.0), (3, 13.0), (4, 14.0)),
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("reward/mean")
    assert [(e.step, e.value) for e in events] == [(0, 0), (1, 1), (2, 12), (3, 13), (4, 14)]


def test_counts_of_the_fleet_continue(tmp_path, settings):
    first = launch_rig.local_run(tmp_path, settings)
    first.fleet.stats.reruns = 3
    first.commit()
    stats = FleetStats(reruns=1, restarts=2)
    stats.continue_from(first.store.load_latest().state["fleet_counts"])
    assert stats.counts() == {"failed_samples": 0, "reruns": 4, "restarts": 2, "rejected": 0}

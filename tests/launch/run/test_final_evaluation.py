"""The comparison at the end of a run."""

import io
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from envs.spec import CHEAPEST_KNOBS, DataError, all_knobs
from launch.analysis.interleaved import Comparison
from launch.analysis.outcomes import outcome
from launch.run.final_evaluation import (
    RIVALS,
    best_table_accuracy,
    comparable,
    finish,
    standing_table,
)
from launch.run.held_out import evaluate
from launch.run.recipes import SHIPPED_PROFILE
from rollout.profiling.profile_table import ProfileTable
from tests import launch_rig
from tests.in_process import LocalFleet
from tests.rollout import rig


@pytest.fixture(scope="module")
def profile():
    return ProfileTable.load(SHIPPED_PROFILE)


def test_a_profile_of_the_same_model_is_converted_to_the_runs_ms(profile):
    assert profile.fingerprint is not None
    assert profile.calibration is not None
    slower = replace(
        profile.calibration,
        cheapest_ms=2 * profile.calibration.cheapest_ms,
        full_ms=2 * profile.calibration.full_ms,
    )
    found = comparable(profile, profile.fingerprint, slower)
    assert found is not None
    assert found.latencies_ms == pytest.approx(2 * profile.latencies_ms, rel=1e-3)


def test_a_profile_that_does_not_fit_is_left_out_with_its_reason(profile, caplog):
    other = replace(profile.fingerprint, weights="0" * 64)
    with caplog.at_level(logging.INFO):
        assert comparable(profile, other, profile.calibration) is None
        assert comparable(profile, profile.fingerprint, None) is None
    assert "comparison profile" in caplog.text
    assert "simulated" in caplog.text


def test_the_best_table_is_between_its_budgets_worst_and_best(profile):
    low, high = (best_table_accuracy(profile, np.array([ms])) for ms in (35.0, 120.0))
    assert 0.4 < low < high < 1
    both = best_table_accuracy(profile, np.array([35.0, 120.0]))
    assert both == pytest.approx((low + high) / 2)
    assert best_table_accuracy(None, np.array([35.0])) is None


def test_the_table_tells_leads_with_their_intervals():
    budgets, feasible = np.array([10.0, 20.0]), np.ones((40, 2), bool)
    inside = np.full((40, 2), 5.0)
    right, wrong = np.ones((40, 2)), np.zeros((40, 2))
    half = np.repeat([[1.0], [0.0]], 20, axis=0) * right
    found = {
        "controller": outcome(right, inside, budgets, feasible),
        "lookup by task": outcome(right, inside, budgets, feasible),
        "lookup": outcome(half, inside, budgets, feasible),
        "static": outcome(wrong, np.full((40, 2), 15.0), budgets, feasible),
    }
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(standing_table(found))
    text = console.export_text()
    assert [name for name in RIVALS.values() if name in text] == list(RIVALS.values())
    for expected in ("+0.000 ± 0.000", "+0.500 ± 0.157", "+1.000 ± 0.000", "50.0%"):
        assert expected in text


class ProfilingFleet(LocalFleet):
    """A local fleet that runs single configurations as well."""

    def profile_each(self, plan, split, what, calibration=None):
        assert what == "episodes of the rivals"
        for index, configurations in plan:
            yield self.worker.profile(configurations, split, index, calibration)


BROKEN = 1


class BrokenTest(rig.NoiseTask):
    """A task one of whose test samples cannot be used."""

    def sample(self, split, index):
        if (split, index) == ("test", BROKEN):
            raise DataError("this image is broken")
        return super().sample(split, index)


def random_profile() -> ProfileTable:
    """Latencies of the simulated device, scores that grow with none of the knobs."""
    rng, rows = np.random.default_rng(0), []
    latencies_ms = dict(launch_rig.simulated().table_ms)
    for index in range(4):
        row = {"sample_id": f"noise/validation/{index}", "task": "noise", "prompt": ""}
        row["scores"] = {str(knobs): float(rng.integers(2)) for knobs in all_knobs()}
        row["latencies_ms"] = latencies_ms
        row["cheapest_ms"] = latencies_ms[str(CHEAPEST_KNOBS)]
        rows.append(row)
    return ProfileTable.from_rows(rows)


def test_with_a_profile_the_run_ends_next_to_its_rivals(tmp_path, capsys):
    worker = launch_rig.worker()
    worker.loader.tasks = BrokenTest()
    fleet, profile = ProfilingFleet(worker), random_profile()
    run = launch_rig.local_run(tmp_path, launch_rig.config(steps=1), fleet)
    run.comparison = Comparison(profile=profile, fleet=fleet)
    evaluate(run)
    finish(run)
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(saved["rivals"]) == list(RIVALS)
    assert np.shape(saved["scores"]) == (2, 2)
    assert BROKEN not in {int(name.rpartition("/")[2]) for name in saved["sample_ids"]}
    for row in saved["rivals"].values():
        assert len(row["by_sample"]) == 2
        assert 0 <= row["violation_rate"] <= 1
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "the controller's lead" in out
    assert "test split: in budget" in out


def test_without_a_profile_the_run_ends_with_its_own_sweep(tmp_path, capsys):
    run = launch_rig.local_run(tmp_path, launch_rig.config(steps=1))
    run.reporter.label = "SIMULATED LATENCY"
    evaluate(run)
    finish(run)
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["latency_source"] == "SIMULATED LATENCY"
    assert saved["rivals"] == {}
    assert np.shape(saved["scores"]) == (2, 2)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "test split: in budget" in capsys.readouterr().out

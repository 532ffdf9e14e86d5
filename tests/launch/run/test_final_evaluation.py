"""The comparison at the end of a run."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from envs.price_curve import PRICE_CURVE_NAME, PriceCurve
from envs.spec import DataError
from launch.analysis.interleaved import Comparison
from launch.run.final_evaluation import (
    ALL_RIVALS,
    RIVALS,
    SHARED_WORK,
    affordable_samples,
    comparable,
    finish,
    rise,
    rival_levels,
)
from launch.run.held_out import evaluate
from launch.run.recipes import SHIPPED_PROFILE
from rollout.profiling.profile_table import ProfileTable
from tests import launch_rig
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


def test_levels_of_tables_rise_with_the_budget_and_fall_with_the_price(profile):
    def levels(budget_ms, price):
        return rival_levels(profile, np.array([budget_ms]), price, full_ms=80.0)

    assert list(levels(60.0, 0.0)) == [RIVALS["lookup by task"], RIVALS["lookup"]]
    for name in levels(60.0, 0.0):
        assert 0.4 < levels(35.0, 0.0)[name] < levels(120.0, 0.0)[name] < 1
        assert levels(60.0, 2.0)[name] < levels(60.0, 0.0)[name]
    assert rival_levels(None, np.array([35.0]), 0.0, full_ms=80.0) == {}


def test_the_small_profile_costs_as_much_as_the_training(profile):
    cost_ms = SHARED_WORK * float(profile.latencies_ms.sum(1).mean())
    assert affordable_samples(profile, 30 * cost_ms) == 30
    assert affordable_samples(profile, 0.0) == 1
    assert affordable_samples(profile, 1e12) == len(profile.sample_ids)


BROKEN = 1


class BrokenTest(rig.NoiseTask):
    """A task one of whose test samples cannot be used."""

    def sample(self, split, index):
        if (split, index) == ("test", BROKEN):
            raise DataError("this image is broken")
        return super().sample(split, index)


def test_with_a_profile_the_run_ends_next_to_its_rivals(tmp_path, capsys):
    worker = launch_rig.worker()
    worker.loader.tasks = BrokenTest()
    fleet, profile = launch_rig.ProfilingFleet(worker), launch_rig.random_profile()
    run = launch_rig.local_run(tmp_path, launch_rig.config(steps=1), fleet)
    run.comparison = Comparison(profile=profile, fleet=fleet)
    evaluate(run)
    finish(run)
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(saved["prices"]) == [str(price) for price in run.config.evaluation.prices]
    for one in saved["prices"].values():
        assert sorted(one["rivals"]) == sorted(ALL_RIVALS)
        assert np.shape(one["scores"]) == (2, 2)
        assert BROKEN not in {int(name.rpartition("/")[2]) for name in one["sample_ids"]}
        assert np.shape(one["answers"]) == (2, 2)
        assert np.shape(one["stages_ms"]) == (2, 2, len(one["stages"]))
        for row in one["rivals"].values():
            assert len(row["by_sample"]) == len(row["ms_by_sample"]) == 2
            assert 0 <= row["violation_rate"] <= 1
    curve, means = PriceCurve.load(tmp_path / PRICE_CURVE_NAME), []
    for one in saved["prices"].values():
        means.append(np.mean(one["latencies_ms"]))
    assert curve == PriceCurve.fitted(run.config.evaluation.prices, means)
    for picture in ("sweep.png", "tradeoff.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    out = " ".join(capsys.readouterr().out.split())
    assert "Leads and ratios are the controller's" in out
    assert "test split, price 0: in budget" in out


def test_without_a_profile_the_run_ends_with_its_own_sweep(tmp_path, capsys):
    run = launch_rig.local_run(tmp_path, launch_rig.config(steps=1))
    run.reporter.label = "SIMULATED LATENCY"
    evaluate(run)
    finish(run)
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["latency_source"] == "SIMULATED LATENCY"
    first = saved["prices"]["0.0"]
    assert first["rivals"] == {}
    assert np.shape(first["scores"]) == (2, 2)
    prices = PriceCurve.load(tmp_path / PRICE_CURVE_NAME).prices
    assert [str(price) for price in prices] == list(saved["prices"])
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "test split, price 0: in budget" in capsys.readouterr().out


def test_the_rise_is_told_in_words():
    name = "at_a_glance/accuracy_held_out"
    rows = [{"step": -1, name: 0.2}, {"step": 0, "other": 1.0}]
    rows += [{"step": 4, name: 0.7}, {"step": 9, name: 0.81}]
    told = rise(rows, {"table": 0.7, "table per task": 0.9})
    assert told.startswith("held-out accuracy: from 0.200 after 0 steps; ")
    assert "level of the table (0.700) reached after 5 steps" in told
    assert "level of the table per task (0.900) not reached" in told

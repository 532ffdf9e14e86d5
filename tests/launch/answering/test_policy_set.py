"""Policies by name, and the tables that a run's budgets give."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from envs.calibration import SteadyTime
from envs.price_curve import PRICE_CURVE_NAME, PriceCurve
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Decoding
from envs.terms import Terms
from launch.analysis.knob_table import KnobTable
from launch.answering import policy_set
from launch.answering.answerer import as_sample
from launch.answering.policies import DEFAULT_KNOBS, TablePolicy
from launch.answering.policy_set import PolicySet, price_curve_of, tables
from launch.run.recipes import SHIPPED_PROFILE
from rollout.profiling.profile_table import ProfileTable
from tests.rollout import rig


def test_without_a_run_there_are_fixed_configurations(model_folder):
    settings = {"model": str(model_folder), "device": "cpu"}
    found = PolicySet.load(worker_settings=settings, executor_settings={"max_new_tokens": 2})
    assert found.names == ("default", "full", "cheapest")
    assert found.default == "default"
    assert found.budget_range_ms() is None
    assert (found.default_price, found.price_curve) == (0.0, None)
    for name, knobs in (
        *(("default", DEFAULT_KNOBS), ("full", FULL_KNOBS), ("cheapest", CHEAPEST_KNOBS)),
        (str(FULL_KNOBS), FULL_KNOBS),
    ):
        assert found.answerer(name).answer("what", budget_ms=50).knobs == knobs
    with pytest.raises(KeyError):
        found.answerer("other")


def test_a_lookup_table_takes_the_largest_budget_that_is_not_above():
    entries = (CHEAPEST_KNOBS, DEFAULT_KNOBS, FULL_KNOBS)
    table = KnobTable(budgets_ms=(20.0, 40.0, 60.0), knobs=(entries,))
    policy, sample = TablePolicy(rig.executor(), table, "a test"), as_sample("what is it", None)
    asked = [Terms(budget_ms=ms) for ms in (1, 20, 39.9, 40, 59, 60, 1e6)]
    outcomes = [policy.run(sample, terms, Decoding()) for terms in asked]
    chosen = [outcome.execution.knobs for outcome in outcomes]
    assert chosen == [
        *(CHEAPEST_KNOBS, CHEAPEST_KNOBS, CHEAPEST_KNOBS),
        *(DEFAULT_KNOBS, DEFAULT_KNOBS, FULL_KNOBS, FULL_KNOBS),
    ]


def test_the_price_curve_is_that_of_the_checkpoints_run(tmp_path):
    said, folder = [], tmp_path / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    assert price_curve_of(folder, said.append) is None
    assert "will not rise with the load" in said[0]
    curve = PriceCurve(prices=(0.0, 1.0), time_ms=(50.0, 30.0))
    curve.save(tmp_path / PRICE_CURVE_NAME)
    assert price_curve_of(folder, pytest.fail) == curve


class FakeController:
    """As much of a trained controller as the tables need."""

    range, present, executor = rig.BUDGETS.range, SteadyTime(), None


def state_of_a_run(profile):
    calibration = replace(profile.calibration, clock="thread_cpu_time")
    return {"calibration": asdict(calibration), "fingerprint": profile.fingerprint.to_json()}


class FakeStore:
    def __init__(self, state):
        self.state = state

    def __call__(self, _folder):
        return self

    def load(self, _folder):
        return self


def test_tables_are_chosen_on_the_shipped_profile(tmp_path, monkeypatch):
    (tmp_path / policy_set.STATE_NAME).write_text("{}")
    state = state_of_a_run(ProfileTable.load(SHIPPED_PROFILE))
    monkeypatch.setattr(policy_set, "CheckpointStore", FakeStore(state))
    found = tables(tmp_path, FakeController(), pytest.fail)
    assert list(found) == ["lookup", "static"]
    assert "best static configuration" in found["static"].source


def test_tables_save_time_where_it_has_a_price(tmp_path, monkeypatch):
    (tmp_path / policy_set.STATE_NAME).write_text("{}")
    profile = ProfileTable.load(SHIPPED_PROFILE)
    monkeypatch.setattr(policy_set, "CheckpointStore", FakeStore(state_of_a_run(profile)))
    median_ms = dict(
        zip(profile.configurations, np.median(profile.latencies_ms, axis=0), strict=True)
    )
    budgets_ms = np.linspace(rig.BUDGETS.range.low_ms, rig.BUDGETS.range.high_ms, 16)
    for name, policy in tables(tmp_path, FakeController(), pytest.fail).items():
        assert policy.default_price == 0.0
        assert policy.table.prices == policy_set.TABLE_PRICES
        chosen_ms = [
            [median_ms[policy.table.at(ms, price=price)] for ms in budgets_ms]
            for price in policy.table.prices
        ]
        assert np.mean(chosen_ms[-1]) < np.mean(chosen_ms[0]), name


def test_there_are_no_tables_for_another_model_or_simulated_latencies(tmp_path, monkeypatch):
    said = []
    assert tables(tmp_path, FakeController(), said.append) == {}
    (tmp_path / policy_set.STATE_NAME).write_text("{}")
    profile = ProfileTable.load(SHIPPED_PROFILE)
    state = state_of_a_run(profile)
    other = replace(profile.fingerprint, weights="0" * 64).to_json()
    simulated = {**state["calibration"], "clock": "simulated"}
    for changed in ({"fingerprint": other}, {"calibration": simulated}, {"fingerprint": None}):
        monkeypatch.setattr(policy_set, "CheckpointStore", FakeStore({**state, **changed}))
        assert tables(tmp_path, FakeController(), said.append) == {}
    reasons = ("saved outside a run", "weights: ", "were simulated", "were simulated")
    assert all(reason in line for reason, line in zip(reasons, said, strict=True))

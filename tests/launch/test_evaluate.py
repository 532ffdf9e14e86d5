"""What the evaluation computes from latencies that it has measured."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from envs.spec import CHEAPEST_KNOBS, DataError, all_knobs
from launch.analysis.bounds import oracle_per_task
from launch.analysis.greedy_sweep import STAGES, GreedySweep
from launch.analysis.interleaved import Live, table_factor
from launch.analysis.knob_table import KnobTable
from launch.analysis.rivals import choose_rivals
from launch.evaluate import (
    BY_KIND,
    BY_SAMPLE,
    EvaluateConfig,
    clock_facts,
    collect_outcomes,
    load_tables,
    measure,
    print_results,
    write,
)
from launch.run.warm_start import gains
from policy.controller import Controller
from policy.weights import PolicyWeights, weights_sha256
from rollout.profiling.profile_table import ProfileTable
from rollout.simulation.table_samples import budgets_of
from tests import launch_rig, table_rig
from tests.launch_rig import ProfilingFleet
from tests.rollout import rig

BUDGETS = np.array([11.8, 20.0, 1e6])
PRICES = (0.0, 0.5)


@pytest.fixture(scope="module")
def table():
    return table_rig.synthetic_table(60)


def by_columns(table, *columns):
    knobs = tuple(table.configurations[column] for column in columns)
    return KnobTable(budgets_ms=tuple(BUDGETS), knobs=(knobs,))


def live(table, rivals, factor=1.25):
    """Rivals run live, so many times as slow as their table says, and a controller at 15 ms."""
    shape = (len(table.sample_ids), len(BUDGETS))
    columns = {
        name: np.array(
            [[table.column(rival.at(ms, task)) for ms in BUDGETS] for task in table.tasks]
        )
        for name, rival in rivals.items()
    }
    runs = {
        name: (
            np.take_along_axis(table.scores, column_SK, 1),
            np.take_along_axis(factor * table.latencies_ms, column_SK, 1),
        )
        for name, column_SK in columns.items()
    }
    result = GreedySweep(
        budgets_ms=BUDGETS,
        scores=np.ones(shape),
        latencies_ms=np.full(shape, 15.0),
        device_budgets_ms=np.tile(1.1 * BUDGETS, (shape[0], 1)),
        device_ms=np.full(shape, 16.5),
        wall_ms=np.full(shape, 33.0),
        cheapest_ms=np.repeat(table.cheapest_ms[:, None], 3, axis=1) * [0.9, 1.0, 1.1],
        actions=np.zeros((*shape, 4), int),
        answers=np.full(shape, "yes"),
        stages_ms=np.ones((*shape, len(STAGES))),
        indices=tuple(range(len(table.tasks))),
        tasks=table.tasks,
        sample_ids=table.sample_ids,
    )
    return Live(result=result, rivals=runs)


def test_the_clock_is_described_by_what_was_measured(table):
    rivals = {"lookup": by_columns(table, 3, 3, 70), "static": by_columns(table, 0, 0, 0)}
    measured = live(table, rivals)
    measured.rivals["lookup"][1][:5] *= 10  # a slow moment
    assert table_factor(measured, rivals, table) == pytest.approx(1.25)
    facts = clock_facts(measured, rivals, table)
    assert facts["slowest"] == facts["fastest"] == pytest.approx(1.1)
    assert facts["wall over clock"] == pytest.approx(2.0)
    assert facts["scatter of repeats"] == pytest.approx(np.log([0.9, 1.0, 1.1]).std(ddof=1))


def test_outcomes_of_what_ran_live_and_of_bounds(table):
    rivals = {"lookup": by_columns(table, 3, 3, 70)}
    found = collect_outcomes(live(table, rivals), table, full_ms=50.0)
    assert list(found)[:3] == ["controller", "lookup", "random"]
    assert found["controller"].in_budget_accuracy.tolist() == [0, 1, 1]
    assert 0 < (table.cheapest_ms <= BUDGETS[0]).mean() < 1, "some episodes are feasible there"
    assert found["controller"].violation.tolist() == [1, 0, 0]
    assert found[BY_KIND].accuracy <= found[BY_SAMPLE].accuracy


def test_everything_is_printed_for_a_reader(table, capsys):
    rivals = {name: by_columns(table, 3, 3, 70) for name in ("lookup", "lookup by task", "static")}
    by_price = {price: live(table, rivals) for price in PRICES}
    found = {price: collect_outcomes(one, table, 50.0) for price, one in by_price.items()}
    print_results(by_price, found, rivals)
    out = " ".join(capsys.readouterr().out.split())
    assert "accuracy within budget / violations at price 0:" in out
    assert "infeasible episodes" in out
    assert "of its device time" in out


def test_what_earns_most_is_the_oracles_choice_between_two_budgets(table):
    budgets = budgets_of(table)
    ms = np.array([budgets.range.low_ms, budgets.uniform_from_ms, budgets.range.high_ms])
    free = np.zeros((60, 3))
    columns_SK = gains(table, np.tile(ms, (60, 1)), free, max_violation=0.05).argmax(-1)
    best = oracle_per_task(table, ms[[0, 2]], max_violation=0.05)
    over_SK = np.take_along_axis(table.latencies_ms, columns_SK, 1) > ms
    inside = (np.take_along_axis(table.scores, columns_SK, 1) * ~over_SK).mean(0)
    assert inside[[0, 2]] == pytest.approx(best.in_budget_accuracy)


# -- joined by sample ------------------------------------------------------------------------------


def profile(split, indices, **fields):
    """A profile of the noise task whose scores tell its samples apart."""
    latencies_ms = dict(launch_rig.simulated().table_ms)
    rows = []
    for index in indices:
        scores = {str(k): float((index + c) % 3 == 0) for c, k in enumerate(all_knobs())}
        row = {"sample_id": f"noise/{split}/{index}", "task": "noise", "prompt": ""}
        row |= {"scores": scores, "latencies_ms": latencies_ms}
        rows.append({**row, "cheapest_ms": latencies_ms[str(CHEAPEST_KNOBS)]})
    return replace(ProfileTable.from_rows(rows), calibration=launch_rig.CALIBRATION, **fields)


class OneBroken(rig.NoiseTask):
    """A test sample that could be read when the profile was measured."""

    def sample(self, split, index):
        if (split, index) == ("test", 502):
            raise DataError("this image is broken")
        return replace(super().sample(split, index), id=f"noise/{split}/{index}")


@pytest.fixture
def measured():
    """The controller and its rivals on the samples of a profile, one of which is broken now."""
    worker = launch_rig.worker()
    worker.loader.tasks = OneBroken()
    torch.manual_seed(3)
    arrays = Controller(launch_rig.setup().controller).to_numpy()
    weights = PolicyWeights(version=1, sha256=weights_sha256(arrays), arrays=arrays)
    test, budgets = profile("test", range(500, 506)), np.array([20.0, 60.0])
    chosen = choose_rivals(profile("validation", range(40)), budgets, PRICES)
    fleet = ProfilingFleet(worker)
    return test, *measure(
        fleet, launch_rig.setup(), weights, chosen, test, budgets_ms=budgets, prices=PRICES
    )


def test_live_episodes_and_profile_are_joined_by_sample(measured):
    asked, by_price, test = measured
    live = by_price[PRICES[1]]
    assert live.result.price == PRICES[1]
    expected = [f"noise/test/{index}" for index in (500, 501, 503, 504, 505)]
    assert list(live.result.sample_ids) == list(test.sample_ids) == expected
    rows = [asked.sample_ids.index(name) for name in expected]
    assert (test.scores == asked.scores[rows]).all()
    assert len(live.rivals["lookup"][0]) == 5


def test_the_written_figures_are_those_of_the_joined_samples(measured, tmp_path):
    """Worked out again from the JSON and the profile, by sample ids."""
    asked, by_price, test = measured
    checkpoint = SimpleNamespace(
        path=tmp_path / "step_00000001",
        state={"calibration": vars_of(launch_rig.CALIBRATION)},
    )
    found = {price: collect_outcomes(live, test, 50.0) for price, live in by_price.items()}
    write(tmp_path, checkpoint, by_price, found, {})
    assert (tmp_path / "tradeoff.png").stat().st_size > 10_000
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(saved["prices"]) == [str(price) for price in PRICES]
    assert saved["num_samples"] == 5
    budgets, saved = saved["budgets_ms"], saved["prices"][str(PRICES[1])]
    ours = saved["controller_episodes"]
    right = [
        [s * (ms <= b) for s, ms, b in zip(*row, budgets, strict=True)]
        for row in zip(ours["scores"], ours["latencies_ms"], strict=True)
    ]
    assert saved["policies"]["controller"]["by_sample"] == np.mean(right, axis=1).tolist()
    best = []
    for name in ours["sample_ids"]:
        row = asked.sample_ids.index(name)
        fits = [asked.latencies_ms[row] <= b for b in budgets]
        best.append(np.mean([asked.scores[row][fit].max(initial=0) for fit in fits]))
    assert saved["policies"][BY_SAMPLE]["by_sample"] == pytest.approx(best)


def vars_of(calibration):
    return {name: getattr(calibration, name) for name in calibration.__slots__}


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (("validation", range(4)), ("validation", range(4)), "test.npz is a profile of the valid"),
        (("test", range(4)), ("test", range(4)), "validation.npz is a profile of the test split"),
        (("validation", range(4)), ("test", (1, 2, 1)), "sample noise/test/1 more than once"),
    ],
)
def test_profiles_of_the_wrong_split_are_refused(tmp_path, validation, test, message):
    checkpoint = SimpleNamespace(
        state={"fingerprint": None, "calibration": vars_of(launch_rig.CALIBRATION)}
    )
    paths = {}
    for name, (split, indices) in {"validation": validation, "test": test}.items():
        paths[name] = tmp_path / f"{name}.npz"
        unique = profile(split, sorted(set(indices)))
        unique.save(paths[name])
        if len(set(indices)) < len(indices):
            repeat_rows(paths[name], len(unique.sample_ids))
    config = EvaluateConfig(run_dir=tmp_path, **paths)
    with pytest.raises(ValueError, match=message):
        load_tables(config, checkpoint)


def repeat_rows(path, count):
    """Doubles every sample of a saved profile."""
    with np.load(path) as arrays:
        doubled = {
            name: np.concatenate([a, a]) if a.ndim and len(a) == count else a
            for name, a in arrays.items()
        }
    np.savez(path, **doubled)


def test_a_profile_of_other_data_is_refused(measured):
    _, by_price, _ = measured
    with pytest.raises(ValueError, match="no sample of the profile ran live"):
        by_price[0.0].on_the_samples_of(profile("test", range(900, 903)))

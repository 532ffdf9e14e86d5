"""Several runs of one recipe, taken together."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from launch.analysis.tradeoff_report import CONTROLLER
from launch.run_report.record import MissingPieceError, read_run
from launch.run_report.together import mean_curves, together


@pytest.fixture
def records(finished, tmp_path):
    """A run, and one that differs from it in its scores and latencies."""
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    path = other / "evaluation.json"
    data = json.loads(path.read_text())
    for one in data["prices"].values():
        one["scores"] = (1 - np.array(one["scores"])).tolist()
        one["latencies_ms"] = (2 * np.array(one["latencies_ms"])).tolist()
    path.write_text(json.dumps(data))
    return [read_run(finished), read_run(other)]


def test_means_are_over_the_runs_by_sample(records):
    found = [record.evaluation.curves() for record in records]
    mean = mean_curves(found)
    assert list(mean) == list(found[0])
    one, other, both = (curves[CONTROLLER] for curves in (*found, mean))
    assert not np.allclose(one.accuracy_PS, other.accuracy_PS)
    np.testing.assert_allclose(both.accuracy_PS, (one.accuracy_PS + other.accuracy_PS) / 2)
    np.testing.assert_allclose(both.time_ms_PS, 1.5 * one.time_ms_PS)
    np.testing.assert_allclose(both.violation_P, (one.violation_P + other.violation_P) / 2)


def test_the_section_says_how_far_the_runs_differ(records):
    html = together(records)
    firsts = [record.evaluation.curves()[CONTROLLER].accuracy_P[0] for record in records]
    assert f"deviation of {abs(firsts[0] - firsts[1]) / 2**0.5:.4f}" in html
    assert "Means over the 2 runs" in html
    assert "violations at price 0.1" in html
    assert "largest budget" in html


def test_runs_on_other_samples_are_not_taken_together(records):
    one, other = records
    first = other.evaluation.sweeps[0.0]
    names = tuple(f"{name}0" for name in first.sample_ids)
    sweeps = {**other.evaluation.sweeps, 0.0: replace(first, sample_ids=names)}
    other = replace(other, evaluation=replace(other.evaluation, sweeps=sweeps))
    for records in ([one, other], [one]):
        with pytest.raises(MissingPieceError, match="same samples"):
            together(records)

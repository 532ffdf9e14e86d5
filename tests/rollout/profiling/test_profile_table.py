from dataclasses import replace

import numpy as np
import pytest

from envs.calibration import Calibration
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Knobs
from rollout.profiling.profile_table import ProfileTable
from tests import table_rig

MIDDLE = Knobs(tier=1, position=1, top_k=6, num_blocks=14)
CALIBRATION = Calibration(
    cheapest_ms=10.0, full_ms=50.0, scatter=0.1, num_samples=4, probes_ms=((9.0, 50.0),), clock="x"
)


@pytest.fixture
def table():
    return ProfileTable(
        configurations=(CHEAPEST_KNOBS, MIDDLE, FULL_KNOBS),
        sample_ids=("a", "b"),
        tasks=("easy", "hard"),
        prompts=("easy: ?", "hard: ?"),
        scores=np.array([[1, 1, 1], [0, 0, 1]], np.float32),
        latencies_ms=np.array([[9, 20, 50], [12, 24, 58]], np.float32),
        cheapest_ms=np.array([9.5, 11.5], np.float32),
        calibration=CALIBRATION,
    )


def test_latencies_without_noise_keep_what_samples_and_configurations_take():
    table = table_rig.synthetic_table(60)
    tasks = np.array(table.tasks)
    rng = np.random.default_rng(3)
    by_sample, by_task = rng.normal(size=60), {t: rng.normal(size=225) for t in set(table.tasks)}
    true = np.array([s + by_task[t] for s, t in zip(by_sample, tasks, strict=True)])
    noisy = true + rng.normal(0.0, 0.1, true.shape)
    steady = replace(table, latencies_ms=np.exp(noisy).astype(np.float32)).denoised()
    again = steady.denoised()
    assert np.allclose(again.latencies_ms, steady.latencies_ms, rtol=1e-5)
    errors = np.log(steady.latencies_ms) - true
    assert errors.std() < 0.05


def test_round_trip_and_broken_files(table, tmp_path):
    path = tmp_path / "table.npz"
    table.save(path)
    again = ProfileTable.load(path)
    assert again.configurations == table.configurations
    assert again.prompts == table.prompts
    assert np.array_equal(again.scores, table.scores)
    assert np.array_equal(again.cheapest_ms, table.cheapest_ms)
    assert again.calibration == CALIBRATION
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"is not a profile table .* measure it again"):
        ProfileTable.load(path)
    path.write_text("plain text")
    with pytest.raises(ValueError, match=r"not an \.npz file of arrays.: measure it again"):
        ProfileTable.load(path)
    with pytest.raises(ValueError, match="not in the profile"):
        table.column(Knobs(tier=2, position=5, top_k=4, num_blocks=16))


def test_rows_must_cover_the_same_configurations():
    row = {"sample_id": "a", "task": "t", "prompt": "p", "cheapest_ms": 1.0}
    rows = [
        {**row, "scores": {str(MIDDLE): 1}, "latencies_ms": {str(MIDDLE): 1}},
        {**row, "scores": {str(FULL_KNOBS): 1}, "latencies_ms": {str(FULL_KNOBS): 1}},
    ]
    with pytest.raises(ValueError, match="covers other configurations"):
        ProfileTable.from_rows(rows)
    with pytest.raises(ValueError, match="no sample"):
        ProfileTable.from_rows([])

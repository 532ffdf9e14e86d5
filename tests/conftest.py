"""Shared fixtures, one thread per process, and which tests may run side by side."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray starts an idle process per core beforehand, and no actor of ours can use one.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)

from rollout.latency.clock import WallClock
from tests.pretended_accelerator import PretendedAccelerator
from tests.rollout import rig

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "tests" / "launch"
RAY_FILES = {
    *LAUNCH.glob("cluster/*.py"),
    LAUNCH / "storage" / "test_uploads.py",
    LAUNCH / "run" / "test_run_metrics.py",
    LAUNCH / "serving" / "test_server.py",
    *(LAUNCH / f"test_{name}.py" for name in ("chain", "cli", "commands")),
    *(LAUNCH / f"test_{name}.py" for name in ("fit_latency_estimator", "pretrain_tiny")),
}
"""Files with tests that start Ray, which is done by one worker of pytest-xdist alone."""

WITHOUT_RAY = {
    "test_importance_measures_every_block",
    "test_mistakes_are_one_clear_line",
    "test_the_whole_core_experiment_within_three_minutes",
}
"""Long tests in those files that do without it, and so run beside the others."""


class OneFileAtATime(LoadScopeScheduling):
    """Keeps the tests of a file together, and all that start Ray."""

    def _split_scope(self, nodeid):
        path, _, test = nodeid.partition("::")
        starts_ray = ROOT / path in RAY_FILES and test.partition("[")[0] not in WITHOUT_RAY
        return "ray" if starts_ray else path


def pytest_xdist_make_scheduler(config, log):
    """Takes the place of --dist: its `loadgroup` does nothing with pytest 9.2."""
    return OneFileAtATime(config, log)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random model with sixteen blocks, as a folder in the published layout."""
    path = tmp_path_factory.mktemp("model")
    rig.write_model_folder(path)
    return path


@pytest.fixture
def accelerator(monkeypatch):
    """A pretended accelerator, timed with the CPU's clock."""
    monkeypatch.setattr("rollout.executor.clock_for", lambda device, choice: WallClock())
    with PretendedAccelerator() as accelerator:
        yield accelerator

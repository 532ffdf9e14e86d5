"""Shared fixtures, and one thread per process, which is fastest for models this small."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

from rollout.latency.clock import WallClock
from tests.pretended_accelerator import PretendedAccelerator
from tests.rollout import rig


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

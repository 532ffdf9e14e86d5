"""A run of a few steps that has ended, next to its rivals."""

import pytest

from launch.analysis.interleaved import Comparison
from launch.joint_grpo import train
from launch.run.final_evaluation import finish
from launch.run.recipes import EvaluationConfig
from launch.storage.starts import Start
from tests import launch_rig


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    evaluation = EvaluationConfig(every=1, num_samples=3, num_budgets=2, prices=(0.0, 0.1))
    settings = launch_rig.config(steps=2, evaluation=evaluation)
    fleet = launch_rig.ProfilingFleet(launch_rig.worker())
    run = launch_rig.local_run(folder, settings, fleet)
    run.comparison = Comparison(profile=launch_rig.random_profile(), fleet=fleet)
    run.setup = launch_rig.setup(settings.price)
    for first_step in (0, 1, 2):
        Start.now(first_step, 1, {"device": "a device"}).append_to(folder)
    train(run)
    finish(run)
    run.reporter.close()
    return folder

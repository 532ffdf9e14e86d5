"""The one place where a name becomes a tracker."""

from __future__ import annotations

from collections.abc import Sequence

from launch.tracking.follower import Follower
from launch.tracking.mlflow_backend import MlflowBackend
from launch.tracking.names import TrackerName
from launch.tracking.tensorboard import TensorBoard
from launch.tracking.tracker import TrackedRun, Tracker
from launch.tracking.trackio_backend import TrackioBackend
from launch.tracking.wandb_backend import WandbBackend

BACKENDS = {"wandb": WandbBackend, "mlflow": MlflowBackend, "trackio": TrackioBackend}


def open_trackers(names: Sequence[TrackerName], run: TrackedRun) -> list[Tracker]:
    """The trackers of these names, which begin with the run."""
    return [
        TensorBoard(run.folder) if name == "tensorboard" else Follower(BACKENDS[name](), run)
        for name in names
    ]

"""A small run with one tracker, which may kill itself after a step that is not saved yet.

python -m tests.launch.tracking.killed_run FOLDER TRACKER [STEP]
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from launch.analysis.settings import flat
from launch.joint_grpo import train
from launch.run.recipes import to_json
from launch.tracking.choosing import open_trackers
from launch.tracking.tracker import TrackedRun
from tests import launch_rig

SENDING_LIMIT_S = 120.0
"""Limit of the wait for the rows that are committed before a kill."""


def main(folder: str, tracker: str, killed_after: str = "") -> None:
    torch.set_num_threads(1)
    settings = launch_rig.config(steps=6, checkpoint_every=2)
    tracked = TrackedRun(name="killed", folder=Path(folder), config=flat(to_json(settings)))
    trackers = open_trackers((tracker,), tracked)
    run = launch_rig.local_run(Path(folder), settings, trackers=trackers)

    def kill(step, _groups, _scalars):
        if str(step + 1) == killed_after:
            wait_for(step, Path(folder) / "trackers" / f"{tracker}.json")
            os.kill(os.getpid(), signal.SIGKILL)

    run.on_step = kill
    train(run)
    run.reporter.close()


def wait_for(num_rows: int, progress: Path) -> None:
    until = time.monotonic() + SENDING_LIMIT_S
    while time.monotonic() < until:
        if progress.exists() and json.loads(progress.read_text())["num_rows"] >= num_rows:
            return
        time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])

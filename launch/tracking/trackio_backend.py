"""Trackio."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from launch.tracking.tracker import PROJECT, TrackedRun

BATCH_S = 0.5
"""How often Trackio writes what it was given."""


class TrackioBackend:
    """One Trackio run, continued under the same name: `trackio show --project latency-budget-grpo`.

    Only rows that cannot be undone are sent, so that Trackio's rows, which are never taken back,
    have each step once. If a run has to go back further because its newest checkpoint is damaged,
    the rows that are done again come after the undone ones, and an alert names the step.

    The project's name can be set with TRACKIO_PROJECT; Trackio's own variables (TRACKIO_DIR,
    TRACKIO_SPACE_ID, TRACKIO_SERVER_URL) count.
    """

    name = "trackio"
    settles_s = 2 * BATCH_S

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: TrackedRun, run_id: str) -> None:
        """Begins or continues the run, whose name ends in the id."""
        import trackio  # pyright: ignore[reportMissingImports]

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name}-{run_id}",
            resume="allow",
            config={name: str(value) for name, value in run.config.items()},
            auto_log_gpu=False,
            auto_log_cpu=False,
            embed=False,
        )

    def log(self, step: int, steps_done: int, scalars: Mapping[str, float]) -> None:
        """Adds a row."""
        self._run.log(dict(scalars), step=steps_done)

    def mark_undone(self, steps_done: int) -> None:
        """Adds an alert."""
        self._run.alert(
            title="the run went back",
            text=f"rows from step {steps_done} on were undone and are done again",
        )

    def close(self) -> None:
        """Ends the run; Trackio waits up to 30 s for what is left."""
        self._run.finish()

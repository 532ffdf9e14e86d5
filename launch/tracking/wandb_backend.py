"""Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from launch.tracking.follower import STEPS_DONE
from launch.tracking.tracker import PROJECT, TrackedRun

INIT_TIMEOUT_S = 60
FINISH_TIMEOUT_S = 45.0
FLUSH_S = 0.5
OFFLINE_MODES = ("offline", "disabled", "dryrun")


class WandbBackend:
    """One W&B run, continued under the same id.

    Offline, each process leaves a folder RUN/wandb/offline-* with that id, for `wandb sync`.

    Only rows that cannot be undone are sent, so that W&B's history, which is never taken back, has
    each step once. If a run has to go back further because its newest checkpoint is damaged, the
    rows that are done again come after the undone ones, and the run's configuration names the step
    (`undone_from_step`). Rows are charted over `steps_done`, not over W&B's own step.

    The environment variables of W&B (WANDB_PROJECT, WANDB_MODE, WANDB_ENTITY ...) count.
    """

    name = "wandb"
    settles_s = 2 * FLUSH_S

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: TrackedRun, run_id: str) -> None:
        """Begins or continues the run; waits up to INIT_TIMEOUT_S for the server."""
        import wandb  # pyright: ignore[reportMissingImports]

        settings = wandb.Settings(
            console="off",  # the run's own output stays as it is
            silent=True,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            x_transaction_log_flush_interval=FLUSH_S,  # by default a kill loses 15 s
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_id,
            name=run.name,
            dir=str(run.folder),
            resume="allow",
            config=dict(run.config),
            allow_val_change=True,
            settings=settings,
        )
        self._run.define_metric("*", step_metric=STEPS_DONE)

    def log(self, step: int, steps_done: int, scalars: Mapping[str, float]) -> None:
        """Adds a row to the history."""
        self._run.log({**scalars, STEPS_DONE: steps_done})

    def mark_undone(self, steps_done: int) -> None:
        """Names the step in the run's configuration."""
        self._run.config.update({"undone_from_step": steps_done}, allow_val_change=True)

    def close(self) -> None:
        """Ends the run; waits up to FINISH_TIMEOUT_S for uploads."""
        self._run.finish()


def check_login() -> None:
    """Raises ValueError if W&B would ask for an API key."""
    import wandb  # pyright: ignore[reportMissingImports]

    if os.environ.get("WANDB_MODE", "online") in OFFLINE_MODES:
        return
    if not wandb.login(prompt=False):
        raise ValueError(
            "--trackers wandb: W&B has no API key: run `wandb login`, or set WANDB_MODE=offline in "
            "the environment"
        )

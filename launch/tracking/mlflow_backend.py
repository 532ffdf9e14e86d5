"""MLflow."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.tracking.tracker import PROJECT, TrackedRun

RUN_TAG = "latency_budget.run"
UNDONE_TAG = "latency_budget.undone_from_step"
MAX_PARAMS = 100
"""Parameters in one request, as many as MLflow takes."""

MAX_PARAM_LENGTH = 500


def own_database(folder: Path) -> str:
    """The URI of a run's own database, which is made under another name and renamed.

    MLflow takes seconds to make its tables, and cannot use a database in which a kill left only
    some of them.
    """
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    path = folder / "mlflow.db"
    if not path.exists():
        temporary = folder / "mlflow.db.partial"
        temporary.unlink(missing_ok=True)
        MlflowClient(tracking_uri=f"sqlite:///{temporary}").search_experiments()
        os.replace(temporary, path)
    return f"sqlite:///{path}"


class MlflowBackend:
    """One MLflow run, found again by a tag with the id that is kept with the run.

    Only rows that cannot be undone are sent, so that metrics, which MLflow never takes back, have
    each step once. If a run has to go back further because its newest checkpoint is damaged, both
    values of a step stay in the metric's history, of which MLflow shows the later one as the
    latest, and the tag `latency_budget.undone_from_step` names the step.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME count; without the former the database
    RUN/mlflow.db is used (`mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`).
    """

    name = "mlflow"
    settles_s = 0.0

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""

    def open(self, run: TrackedRun, run_id: str) -> None:
        """Begins or continues the run; MLflow's own time limits hold."""
        # Failed attempts are made again and logged by the follower; MLflow would wait for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or own_database(run.folder)
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(name)
        )
        known = self._client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'")
        if known:
            self._run_id = known[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        created = self._client.create_run(experiment_id, run_name=run.name, tags={RUN_TAG: run_id})
        self._run_id = created.info.run_id
        self._log_params(run.config)

    def _log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        params = [Param(name, str(value)[:MAX_PARAM_LENGTH]) for name, value in config.items()]
        for first in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[first : first + MAX_PARAMS])

    def log(self, step: int, steps_done: int, scalars: Mapping[str, float]) -> None:
        """Sends a row in one request."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now_ms = int(1000 * time.time())
        metrics = [Metric(name, value, now_ms, steps_done) for name, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def mark_undone(self, steps_done: int) -> None:
        """Names the step in a tag."""
        self._client.set_tag(self._run_id, UNDONE_TAG, str(steps_done))

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._run_id)

"""Sends the committed rows of metrics.jsonl to a tracker, in a thread of its own.

A row is committed once a checkpoint holds its step. Such rows are never undone when a run is
resumed, so that trackers that cannot take rows back get each step once: the row of a step arrives
when the next checkpoint is written, which by default is one step later. How many rows have arrived
is kept in RUN/trackers/NAME.json, together with the tracker's id of the run. What was not sent, for
instance because the network failed or the process was killed, is sent later or by the resumed run.
Rows that were sent within `Backend.settles_s` before a kill are sent again, with the same values.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from launch.tracking.tracker import TrackedRun

log = logging.getLogger(__name__)

FOLDER = "trackers"
METRICS_NAME = "metrics.jsonl"

STEPS_DONE = "steps_done"
"""Scalar that every row gets: the number of steps after which it was written."""

CLOSE_LIMIT_S = 60.0
"""Maximum wait for a tracker when a run ends."""

RETRY_S = 30.0
"""Shortest time between two attempts at a tracker that has failed."""


class Backend(Protocol):
    """A tracker's own package, which may raise anything.

    Attributes:
        name: of the tracker.
        settles_s: seconds after which a row that was sent survives a kill of this process.
    """

    name: str
    settles_s: float

    def open(self, run: TrackedRun, run_id: str) -> None:
        """Begins the run of this id, or continues it."""
        ...

    def log(self, step: int, steps_done: int, scalars: Mapping[str, float]) -> None:
        """Sends a row."""
        ...

    def mark_undone(self, steps_done: int) -> None:
        """Marks that the run went back behind rows that were sent."""
        ...

    def close(self) -> None:
        """Ends the run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is kept with the run.

    Attributes:
        run_id: the tracker's id of the run.
        num_rows: number of rows of metrics.jsonl that the tracker has.
    """

    run_id: str
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WentBack:
    """The run begins at `first_step`, where metrics.jsonl holds `num_rows` rows."""

    first_step: int
    num_rows: int


class Follower:
    """A tracker that gets committed rows; it neither ends nor delays a run.

    The first failure is logged; later ones are not, and the rows are tried again.

    Args:
        backend: the tracker.
        run: what is tracked.
        close_limit_s: maximum wait when the run ends, in seconds.
    """

    def __init__(
        self, backend: Backend, run: TrackedRun, close_limit_s: float = CLOSE_LIMIT_S
    ) -> None:
        self.backend, self.run, self.close_limit_s = backend, run, close_limit_s
        self._path = run.folder / FOLDER / f"{backend.name}.json"
        self._changed = threading.Condition()
        self._num_committed = 0
        self._went_back: WentBack | None = None
        self._is_closing = self._has_failed = self._is_open = False
        self._progress: Progress | None = None
        self._thread: threading.Thread | None = None

    # -- called by the run -----------------------------------------------------------------------

    def begin_at(self, first_step: int) -> None:
        """Starts the thread, or follows the run back; its file holds the remaining rows alone."""
        with self._changed:
            self._num_committed = len(self._rows())
            self._went_back = WentBack(first_step=first_step, num_rows=self._num_committed)
            self._changed.notify()
        if self._thread is None:
            name = f"tracker {self.backend.name}"
            self._thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._thread.start()

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Nothing yet: the row is sent once it is committed."""

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Nothing: TensorBoard alone gets histograms."""

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Nothing: TensorBoard alone gets figures."""

    def committed(self, num_rows: int) -> None:
        """These rows may be sent; returns at once."""
        with self._changed:
            self._num_committed = num_rows
            self._changed.notify()

    def close(self) -> None:
        """Sends what is left, up to the time limit."""
        if self._thread is None:
            return
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(self.close_limit_s)
        if self._thread.is_alive():
            self._failed(TimeoutError(f"it did not finish within {self.close_limit_s:.0f} s"))

    # -- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        """Sends rows until the run ends; after a failure it waits before it tries again."""
        while True:
            is_last = self._wait()
            try:
                self._send()
                if is_last:
                    self.backend.close()
            except Exception as error:  # of any package, network or disk
                self._failed(error)
                if not is_last:
                    self._pause()
            if is_last:
                return

    def _wait(self) -> bool:
        """Waits until there is something to do; returns whether the run ends."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_closing
                    or self._went_back is not None
                    or self._progress is None
                    or self._num_committed > self._progress.num_rows
                )
            )
            return self._is_closing

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, RETRY_S)

    def _send(self) -> None:
        """Sends all committed rows that the tracker does not have yet."""
        if self._progress is None:
            self._progress = self._read()
        if not self._is_open:
            self._keep(self._progress)
            self.backend.open(self.run, self._progress.run_id)
            self._is_open = True
        with self._changed:
            rows, went_back = self._rows()[: self._num_committed], self._went_back
        if went_back is not None and went_back.num_rows < self._progress.num_rows:
            self.backend.mark_undone(went_back.first_step)
            self._keep(replace(self._progress, num_rows=went_back.num_rows))
        with self._changed:
            if self._went_back is went_back:
                self._went_back = None
        new = rows[self._progress.num_rows :]
        for row in new:
            self.backend.log(row["step"], row["step"] + 1, scalars_of(row))
        if new:
            time.sleep(self.backend.settles_s)
            self._keep(replace(self._progress, num_rows=len(rows)))

    def _rows(self) -> list[Mapping[str, Any]]:
        """The rows of metrics.jsonl; none before the first one."""
        try:
            lines = (self.run.folder / METRICS_NAME).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _read(self) -> Progress:
        """What was kept, or a new id."""
        try:
            return Progress(**json.loads(self._path.read_text()))
        except FileNotFoundError:
            return Progress(run_id=uuid4().hex[:12], num_rows=0)

    def _keep(self, progress: Progress) -> None:
        self._path.parent.mkdir(exist_ok=True)
        temporary = self._path.with_suffix(".partial")
        temporary.write_text(json.dumps(asdict(progress)) + "\n")
        os.replace(temporary, self._path)
        self._progress = progress

    def _failed(self, error: BaseException) -> None:
        if not self._has_failed:
            log.warning(
                "the tracker %s failed (%s: %s): the run goes on, and what is missing is sent "
                "later or when the run is resumed; metrics.jsonl has every row",
                *(self.backend.name, type(error).__name__, " ".join(str(error).split())[:300]),
            )
        self._has_failed = True


def scalars_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of a row, without its step, clock and label."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }

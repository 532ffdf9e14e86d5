"""Output of a run: JSON lines, the same scalars to trackers, and one progress line per step."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from envs.spec import HEADS
from launch.cluster.progress import spoken
from launch.tracking.tensorboard import TensorBoard
from launch.tracking.tracker import Tracker
from rollout.group_rollout import GroupRollout

EVALUATED = "time/evaluate_s"
"""A scalar that every row of an evaluation has, and no other row."""

STEPS_FOR_PACE = 20
"""Number of last steps from which the time that is left is told; evaluations are not in it."""


class Reporter:
    """Writes the scalars of a run; a resumed run continues after its last step.

    Args:
        run_dir: folder in which `metrics.jsonl` is created.
        num_steps: number of steps of the run, for the progress line.
        clock: the clock that latencies are from, named in every row.
        label: prefix of every line, such as a simulated latency source; empty for none.
        trackers: where scalars go as well; by default TensorBoard's files in the folder.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        num_steps: int,
        clock: str,
        label: str = "",
        trackers: Sequence[Tracker] | None = None,
    ) -> None:
        self.console = Console(soft_wrap=True, highlight=False)
        self.num_steps = num_steps
        self.clock, self.label = clock, label
        self.run_dir, self.path = run_dir, run_dir / "metrics.jsonl"
        self.trackers = [TensorBoard(run_dir)] if trackers is None else trackers
        self._num_rows = 0
        self._last_steps_s: deque[float] = deque(maxlen=STEPS_FOR_PACE)

    def begin_at(self, first_step: int, *, evaluation_pending: bool = False) -> None:
        """Opens the files, or opens them again because the run has gone back.

        Args:
            first_step: the next step; rows of this or later steps, which were undone or left by a
                run that was killed, are dropped.
            evaluation_pending: whether the step before it is still to be evaluated; rows of an
                evaluation of it that was interrupted are dropped as well.
        """
        last = first_step - 1 if evaluation_pending else None
        rows = [
            row
            for row in _complete_rows(self.path, before_step=first_step)
            if row["step"] != last or EVALUATED not in row
        ]
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, self.path)
        self._num_rows = len(rows)
        for tracker in self.trackers:
            tracker.begin_at(first_step)

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step as one JSON line and to the trackers, NaN left out."""
        scalars = {name: value for name, value in scalars.items() if not math.isnan(value)}
        label = {"label": self.label} if self.label else {}
        row = {"step": step, "clock": self.clock, **label, **scalars}
        with self._writing(), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._num_rows += 1
        for tracker in self.trackers:
            tracker.scalars(step, scalars)

    def committed(self) -> None:
        """All rows so far belong to a checkpoint."""
        for tracker in self.trackers:
            tracker.committed(self._num_rows)

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the run so far."""
        return _complete_rows(self.path)

    def choices(self, step: int, groups: Sequence[GroupRollout]) -> None:
        """Writes a histogram of each head's choices."""
        actions = np.concatenate([g.actions for g in groups])
        for head, column in zip(HEADS, actions.T, strict=True):
            self.distributions(step, f"rollout_choices/{head.name}", np.array(head.choices)[column])

    def distributions(self, step: int, name: str, values: np.ndarray) -> None:
        """Writes a histogram of an array."""
        for tracker in self.trackers:
            tracker.histogram(step, name, values)

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Writes a matplotlib figure."""
        for tracker in self.trackers:
            tracker.figure(step, name, figure)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns an error of the disk, which may name no file, into one that says what to do."""
        try:
            yield
        except OSError as error:
            raise RuntimeError(
                f"{self.run_dir} cannot be written to ({error.strerror or error}): free space "
                "there, then give the same command again to resume"
            ) from error

    def progress(self, step: int, scalars: Mapping[str, float], slowest: str) -> None:
        """Prints the progress line of a step, with the time that the rest of them will take."""
        self._last_steps_s.append(scalars["time/step_s"])
        left_s = float(np.mean(self._last_steps_s)) * (self.num_steps - step - 1)
        parts = [
            f"step {step + 1}/{self.num_steps}",
            f"reward {scalars['reward/mean']:+.3f}",
            f"in budget {scalars['at_a_glance/accuracy_sampled']:.3f}",
            f"violations {_percent(scalars.get('at_a_glance/violation_sampled'))}",
            f"lambda {scalars['reward/lambda']:.2f}",
            f"p95 {scalars['latency/p95_ms']:.0f} ms",
            f"{scalars['time/step_s']:.1f} s",
            f"slowest {slowest or 'none'}",
            f"left {spoken(left_s)}",
        ]
        self.say("  ".join(parts))

    def say(self, text: str) -> None:
        """Prints a line."""
        prefix = f"[{self.label}] " if self.label else ""
        self.console.print(prefix + text, markup=False)

    def close(self) -> None:
        """Closes the trackers, all at once, so that their time limits do not add up."""
        with ThreadPoolExecutor(max_workers=max(1, len(self.trackers))) as pool:
            list(pool.map(lambda tracker: tracker.close(), self.trackers))


def _percent(share: float | None) -> str:
    return "none feasible" if share is None else f"{share:.1%}"


def _complete_rows(path: Path, *, before_step: float = math.inf) -> list[dict[str, Any]]:
    """The complete rows before a step; a torn last line is skipped."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            if row["step"] < before_step:
                rows.append(row)
        except (json.JSONDecodeError, KeyError):
            continue
    return rows

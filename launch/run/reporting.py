"""Output of a run: TensorBoard, the same scalars as JSON lines, and one progress line per step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from envs.spec import HEADS
from rollout.group_rollout import GroupRollout

EVALUATED = "time/evaluate_s"
"""A scalar that every row of an evaluation has, and no other row."""


class Reporter:
    """Writes the scalars of a run; a resumed run continues after its last step.

    Args:
        run_dir: folder in which `tensorboard/` and `metrics.jsonl` are created.
        num_steps: number of steps of the run, for the progress line.
        clock: the clock that latencies are from, named in every row.
        label: prefix of every line, such as a simulated latency source; empty for none.
    """

    def __init__(self, run_dir: Path, *, num_steps: int, clock: str, label: str = "") -> None:
        self.console = Console(soft_wrap=True, highlight=False)
        self.num_steps = num_steps
        self.clock, self.label = clock, label
        self.run_dir, self.path = run_dir, run_dir / "metrics.jsonl"
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        """TensorBoard's writer, once `begin_at` was called."""
        assert self._writer is not None, "call begin_at first"
        return self._writer

    def begin_at(self, first_step: int, *, evaluation_pending: bool = False) -> None:
        """Opens the files, or opens them again because the run has gone back.

        Args:
            first_step: the next step; rows of this or later steps, which were undone or left by a
                run that was killed, are dropped.
            evaluation_pending: whether the step before it is still to be evaluated; rows of an
                evaluation of it that was interrupted are dropped as well.
        """
        self.close()
        self._writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=first_step)
        last = first_step - 1 if evaluation_pending else None
        rows = [
            row
            for row in _complete_rows(self.path, before_step=first_step)
            if row["step"] != last or EVALUATED not in row
        ]
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, self.path)

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step to TensorBoard and as one JSON line, NaN left out."""
        scalars = {name: value for name, value in scalars.items() if not math.isnan(value)}
        label = {"label": self.label} if self.label else {}
        row = {"step": step, "clock": self.clock, **label, **scalars}
        with self._writing():
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

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
        with self._writing():
            self.writer.add_histogram(name, values, step)

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Writes a matplotlib figure and closes it."""
        with self._writing():
            self.writer.add_figure(name, figure, step, close=True)

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
        """Prints the progress line of a step."""
        parts = [
            f"step {step + 1}/{self.num_steps}",
            f"reward {scalars['reward/mean']:+.3f}",
            f"in budget {scalars['at_a_glance/accuracy_sampled']:.3f}",
            f"violations {_percent(scalars.get('at_a_glance/violation_sampled'))}",
            f"lambda {scalars['reward/lambda']:.2f}",
            f"p95 {scalars['latency/p95_ms']:.0f} ms",
            f"{scalars['time/step_s']:.1f} s",
            f"slowest {slowest or 'none'}",
        ]
        self.say("  ".join(parts))

    def say(self, text: str) -> None:
        """Prints a line."""
        prefix = f"[{self.label}] " if self.label else ""
        self.console.print(prefix + text, markup=False)

    def close(self) -> None:
        """Flushes and closes TensorBoard's files."""
        if self._writer is not None:
            self._writer.close()


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

"""TensorBoard's event files, in RUN/tensorboard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class TensorBoard:
    """Writes scalars, histograms and figures while the run goes on.

    Rows of undone steps are overwritten: a run that goes back opens a new file that tells
    TensorBoard to drop what other files have from that step on.

    Args:
        run_dir: folder in which `tensorboard/` is created.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._has_failed = False

    @property
    def writer(self) -> SummaryWriter:
        """The writer, once `begin_at` was called."""
        assert self._writer is not None, "call begin_at first"
        return self._writer

    def begin_at(self, first_step: int) -> None:
        """Opens a file, which marks this and later steps of others as undone."""
        self.close()

        def open_file() -> None:
            self._writer = SummaryWriter(str(self.folder), purge_step=first_step)

        self._attempt(open_file)

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a row."""

        def write() -> None:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)

        self._attempt(write)

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Writes a histogram."""
        self._attempt(lambda: self.writer.add_histogram(name, values, step))

    def figure(self, step: int, name: str, figure: Any) -> None:
        """Writes a figure and closes it."""
        self._attempt(lambda: self.writer.add_figure(name, figure, step, close=True))

    def committed(self, num_rows: int) -> None:
        """Nothing: rows are written at once."""

    def close(self) -> None:
        """Flushes and closes the file."""
        if self._writer is not None:
            self._attempt(self._writer.close)

    def _attempt(self, write: Callable[[], object]) -> None:
        """An error of the disk is logged once: metrics.jsonl has every scalar."""
        try:
            write()
        except Exception as error:
            if not self._has_failed:
                log.warning(
                    "TensorBoard's files in %s cannot be written (%s): the run goes on without "
                    "them, and metrics.jsonl has every scalar",
                    *(self.folder, error),
                )
            self._has_failed = True

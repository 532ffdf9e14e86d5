"""How much of a long piece of work is done, and how long the rest will take."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import ClassVar, Self, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 5.0
"""How often a log says how much is done; what ends sooner than that says nothing."""

FEW = 0.05
"""Share of the parts from which on the first ones alone tell how long the rest will take."""

T = TypeVar("T")


class Progress:
    """Shows how many of equal parts are done: a bar on a terminal, a line now and then in a log.

    Work within other work is silent as soon as the other can tell how long it takes.

    Args:
        what: the parts, in words.
        total: number of parts.
    """

    _open: ClassVar[list[Progress]] = []

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.num_done = what, total, 0
        self._started = self._last_said = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        self._open.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.remove(self)
        if self._bar is not None:
            self._bar.stop()

    def update(self, num_done: int) -> None:
        """So many parts are done by now; says so if it is time, and the rest takes a while."""
        self.num_done, now = num_done, time.monotonic()
        if num_done and self._first is None:
            self._first = (now, num_done)
        around = self._open[: self._open.index(self)]
        is_silent = any(one.num_done for one in around)
        if is_silent or now - self._last_said < PROGRESS_EVERY_S:
            return
        if sys.stdout.isatty():
            self._show(num_done)
        elif PROGRESS_EVERY_S <= (left_s := self._left_s(now)) < math.inf:
            self._last_said = now
            log.info("%s: %d of %d, %s left", self.what, num_done, self.total, spoken(left_s))

    def _left_s(self, now: float) -> float:
        """Seconds for the rest, by the parts after the first, which may be slow to begin.

        Infinite as long as that cannot be told: before the first, or with one of many.
        """
        began, before = self._first or (now, 0)
        if self.num_done == before:
            began, before = self._started, 0
            if self.num_done < FEW * self.total:
                return math.inf
        return remaining_s(now - began, self.num_done - before, self.total - before)

    def _show(self, num_done: int) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Bar(*columns, TimeRemainingColumn(), transient=True)
            self._bar.add_task(self.what, total=self.total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=num_done)


def counted(parts: Sequence[T], what: str) -> Iterator[T]:
    """Yields parts of a long piece of work one after another, and shows the progress."""
    with Progress(what, len(parts)) as progress:
        for number, part in enumerate(parts):
            progress.update(number)
            yield part


def remaining_s(elapsed_s: float, num_done: int, total: int) -> float:
    """Seconds for the rest at the pace so far; infinite before anything is done."""
    return elapsed_s / num_done * (total - num_done) if num_done else math.inf


def spoken(seconds: float) -> str:
    """A duration to two or three digits: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"

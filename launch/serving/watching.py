"""What the gateway reports to a watcher: the metrics, or a test."""

from __future__ import annotations

from typing import Protocol

from launch.serving.responses import Served


class Watcher(Protocol):
    """Is informed of every request and of the queue."""

    def answered(self, model: str, served: Served) -> None:
        """A request was answered."""
        ...

    def refused(self, model: str, code: str) -> None:
        """A request was refused or failed, with its error's code, or `abandoned` by its client."""
        ...

    def queue(self, *, num_waiting: int, num_running: int, num_replicas: int) -> None:
        """The present state of the queue."""
        ...

"""Copies a run to its object store in a thread, so that no step waits for the network."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from launch.cluster.waiting import telling
from launch.storage.object_store import RunStore, TakenOverError

logger = logging.getLogger(__name__)

LAST_UPLOAD_S = 120.0
"""Maximum wait for the last upload when a run ends."""


class Uploader:
    """A thread that uploads the newest checkpoint and skips those it cannot keep up with.

    Args:
        store: the run's home.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._newest: Path | None = None
        self._taken_over: TakenOverError | None = None
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path) -> None:
        """Schedules the upload of a checkpoint and the run's logs; returns at once.

        Raises:
            TakenOverError: an earlier upload found that another machine has continued the run.
        """
        if self._taken_over is not None:
            raise self._taken_over
        with self._changed:
            self._newest = checkpoint
            self._changed.notify()

    def close(self) -> None:
        """Uploads what is left, results included, and ends the thread; waits up to a limit.

        Raises:
            TakenOverError: another machine has continued the run.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        with telling(f"the last upload to {self.store.uri}, at most {LAST_UPLOAD_S:.0f} s"):
            self._thread.join(LAST_UPLOAD_S)
        if self._thread.is_alive():
            logger.warning(
                "the last upload to %s did not finish within %.0f s: everything is in %s, and the "
                "next start with this --run-dir on this machine uploads the rest",
                *(self.store.uri, LAST_UPLOAD_S, self.store.run_dir),
            )
        if self._taken_over is not None:
            raise self._taken_over

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._is_closing)
                checkpoint, self._newest = self._newest, None
                is_last = self._is_closing
            try:
                if is_last:
                    self.store.mirror_results()
                    return
                assert checkpoint is not None
                self.store.mirror(checkpoint)
            except TakenOverError as error:
                self._taken_over = error
                return
            except Exception:  # the run continues even if the store fails; the next upload retries
                logger.exception("an upload to %s failed", self.store.uri)
                if is_last:
                    return

"""A writer of checkpoints that is killed before any of its system calls."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from learner.archive import name_of
from learner.checkpoint import CheckpointStore, find_controller
from learner.manifest import step_folders, verified_manifest
from tests.learner.synthetic import make_controller

CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
"""Audit events of all calls that change a folder, raised before the call."""

HISTORY = ((1, 0.5), (2, None), (2, 0.9), (3, None), (4, 0.2))
"""Steps and metrics, as a run saves them: before an evaluation and, again, with its metric."""


def save(root: Path, keep_last: int, number: int) -> None:
    """The number-th save of the history."""
    step, metric = HISTORY[number]
    controller = make_controller(seed=number)
    parts = [b"of every save", str(number).encode()]
    archive = {name_of(part): part for part in parts}
    learner_state = {"controller": {}, "optimizer": {}, "version": number, "archive": archive}
    store = CheckpointStore(root, keep_last)
    store.recover()
    store.save(step, controller, learner_state, {"next_step": step, "number": number}, metric)


def killed_before_call(root: Path, keep_last: int, number: int, call: int) -> bool:
    """Saves in a child that is killed before its call-th call; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = call

        def count(event: str, arguments: tuple) -> None:
            nonlocal left
            is_dirfd = event in ("os.remove", "os.rmdir") and not str(arguments[0]).startswith("/")
            if event in CALLS and (is_dirfd or str(arguments[0]).startswith(str(root))):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            save(root, keep_last, number)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("keep_last", [1, 3])
def test_the_newest_complete_checkpoint_is_found_wherever_a_writer_is_killed(tmp_path, keep_last):
    root, before = tmp_path / "checkpoints", tmp_path / "before"
    kills = 0
    for number in range(len(HISTORY)):
        if root.exists():
            shutil.copytree(root, before / str(number))
        call = 0
        while killed_before_call(root, keep_last, number, call):
            kills += 1
            check(root, keep_last, number)
            shutil.rmtree(root, ignore_errors=True)
            if number:
                shutil.copytree(before / str(number), root)
            call += 1
        assert CheckpointStore(root).load_latest(to_resume=True).state["number"] == number
        folders = step_folders(root)
        needed = {name for folder in folders for name in verified_manifest(folder).archive}
        assert {path.name for path in (root / "archive").iterdir()} == needed
    assert kills > 100


def check(root: Path, keep_last: int, number: int) -> None:
    """After a kill during a save: reading finds the save before it or itself, and so does going on.

    The best checkpoint is kept, and nothing is left over afterwards.
    """
    reader = CheckpointStore(root, keep_last)
    found = reader.load_latest(to_resume=True)
    if number == 0 and found is None:
        return
    assert found.state["number"] in (number - 1, number)
    assert verified_manifest(find_controller(root)).step == found.step
    if number:
        best = max(metric for _, metric in HISTORY[:number] if metric)
        assert verified_manifest(reader.best()).metric >= best
    owner = CheckpointStore(root, keep_last)
    owner.recover()
    assert owner.load_latest(to_resume=True).state == found.state
    assert not list(root.glob(".*"))
    assert not list(root.glob("archive/.*"))
    assert all(verified_manifest(folder) for folder in step_folders(root))

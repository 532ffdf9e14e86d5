"""A run folder can be used by only one run at a time."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from launch.storage.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from launch.storage.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(120)
"""


def test_a_second_run_is_refused_until_the_first_is_over(tmp_path):
    folder = tmp_path / "run"
    with RunLock(folder):
        with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()} on "):
            RunLock(folder).acquire()
        (folder / "metrics.jsonl").touch()
    assert folder.is_dir()
    with RunLock(folder):
        pass


def test_a_folder_in_which_nothing_was_written_goes(tmp_path):
    with RunLock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_a_killed_run_is_taken_over(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match=f"in use by process {child.pid} on "):
            RunLock(tmp_path).acquire()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with RunLock(tmp_path):
        pass


def test_of_many_that_try_at_once_one_gets_it(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    for _ in range(20):
        locks = [RunLock(tmp_path) for _ in range(6)]
        got, start = [], threading.Barrier(6)

        def take(lock, got=got, start=start):
            start.wait()
            try:
                lock.acquire()
                got.append(lock)
            except RuntimeError:
                pass

        threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].release()


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(RuntimeError, match="its file system has no locks"):
        RunLock(tmp_path / "run").acquire()
    assert not list((tmp_path / "run").glob("*.holder"))

"""One run folder, one run."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import run_lock
from launch.run_lock import LOCK_NAME, STALE_AFTER_S, Holder, RunLock

HOLD = """
import sys, time
from pathlib import Path
from launch.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(120)
"""


def leave_behind(folder, silent_s=0.0, **changes):
    """The lock file of another holder."""
    holder = dataclasses.replace(Holder.this_process(), **changes)
    path = folder / LOCK_NAME
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    os.utime(path, (time.time() - silent_s,) * 2)


def test_a_second_run_is_refused_until_the_first_is_over(tmp_path):
    folder = tmp_path / "run"
    with RunLock(folder):
        with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()} on "):
            RunLock(folder).acquire()
        assert (folder / LOCK_NAME).is_file()
    assert not list(folder.iterdir())
    with RunLock(folder):
        pass


def test_a_killed_run_is_taken_over(tmp_path, caplog):
    child = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match=f"in use by process {child.pid} on "):
            RunLock(tmp_path).acquire()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with RunLock(tmp_path):
        assert f"from process {child.pid}" in caplog.text


def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path):
    leave_behind(tmp_path, started=1)
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"machine": "before the reboot"}])
def test_another_machine_holds_it_while_it_gives_signs_of_life(tmp_path, change):
    leave_behind(tmp_path, pid=7, silent_s=STALE_AFTER_S - 20, **change)
    with pytest.raises(RuntimeError, match=r"process 7 on .*if that machine is gone"):
        RunLock(tmp_path).acquire()
    leave_behind(tmp_path, pid=7, silent_s=STALE_AFTER_S + 1, **change)
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_half_written_lock_is_respected_while_it_is_fresh(tmp_path, content):
    path = tmp_path / LOCK_NAME
    path.write_text(content)
    with pytest.raises(RuntimeError, match="taken by another run at this moment"):
        RunLock(tmp_path).acquire()
    os.utime(path, (1, 1))
    with RunLock(tmp_path):
        pass


def test_the_holder_gives_signs_of_life_and_notices_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.02)
    path = tmp_path / LOCK_NAME
    with RunLock(tmp_path) as lock:
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1
        assert not lock.is_lost
        path.unlink()
        leave_behind(tmp_path, pid=7)
        while not lock.is_lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.is_lost
    assert json.loads(path.read_text())["pid"] == 7, "the other run's lock stays"


def test_of_many_that_take_over_a_stale_lock_one_gets_it(tmp_path):
    for _ in range(20):
        leave_behind(tmp_path, started=1)
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
        assert list(tmp_path.iterdir()) == []

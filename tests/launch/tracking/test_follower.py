"""Rows arrive once they are committed, each once, whatever the tracker does."""

import json
import logging
import threading
import time

from launch.run.reporting import Reporter
from launch.tracking.follower import Follower
from launch.tracking.tracker import TrackedRun


class Recorder:
    """A tracker that keeps what it gets, as a server would."""

    name, settles_s = "recorder", 0.0

    def __init__(self, rows, failures=0):
        self.rows, self.failures = rows, failures
        self.opened, self.undone, self.closed = [], [], 0

    def open(self, run, run_id):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route")
        self.opened.append((run.name, run_id))

    def log(self, step, steps_done, scalars):
        self.rows.append((steps_done, dict(scalars)))

    def mark_undone(self, steps_done):
        self.undone.append(steps_done)

    def close(self):
        self.closed += 1


def reporter_with(folder, backend, **options):
    follower = Follower(backend, TrackedRun(name="one", folder=folder, config={}), **options)
    return Reporter(folder, num_steps=9, clock="test", trackers=[follower])


def arrived(rows, count, limit_s=30.0):
    """Waits for rows; gives what has arrived."""
    until = time.monotonic() + limit_s
    while len(rows) < count and time.monotonic() < until:
        time.sleep(0.005)
    return list(rows)


def write(reporter, *steps):
    for step in steps:
        reporter.scalars(step, {"loss": 10.0 * step, "nothing": float("nan")})


def test_a_row_arrives_with_the_checkpoint_that_holds_it(tmp_path):
    backend = Recorder([])
    reporter = reporter_with(tmp_path, backend)
    reporter.begin_at(0)
    write(reporter, 0, 1)
    reporter.committed()
    assert arrived(backend.rows, 2) == [(1, {"loss": 0.0}), (2, {"loss": 10.0})]
    write(reporter, 2)
    time.sleep(0.1)
    assert len(backend.rows) == 2, "its step can still be undone"
    reporter.close()
    assert len(backend.rows) == 2
    assert backend.closed == 1


def test_a_resumed_run_continues_the_same_run_without_undone_steps(tmp_path):
    rows, ids = [], []
    for first, steps in ((0, (0, 1, 2)), (2, (2, 3, 4)), (5, (5,))):
        backend = Recorder(rows)
        reporter = reporter_with(tmp_path, backend)
        reporter.begin_at(first)
        write(reporter, *steps[:2])
        reporter.committed()
        write(reporter, *steps[2:])  # undone, if the process is killed now
        if first:
            reporter.committed()
        reporter.close()
        ids += [run_id for _, run_id in backend.opened]
        assert backend.undone == []
    assert [steps_done for steps_done, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert len(ids) == 3
    assert len(set(ids)) == 1


def test_going_back_behind_what_was_sent_is_marked(tmp_path):
    backend = Recorder([])
    reporter = reporter_with(tmp_path, backend)
    reporter.begin_at(0)
    write(reporter, 0, 1, 2)
    reporter.committed()
    arrived(backend.rows, 3)
    for _ in range(20):  # however soon the thread sees it
        sent = len(backend.rows)
        reporter.begin_at(1)  # the newer checkpoints are damaged
        write(reporter, 1, 2)
        reporter.committed()
        arrived(backend.rows, sent + 2)
    reporter.close()
    assert backend.undone == [1] * 20
    assert [steps_done for steps_done, _ in backend.rows] == [1, 2, 3, *[2, 3] * 20]


def test_a_failure_is_logged_once_and_made_up_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("launch.tracking.follower.RETRY_S", 0.01)
    backend = Recorder([], failures=3)
    with caplog.at_level(logging.WARNING):
        reporter = reporter_with(tmp_path, backend)
        reporter.begin_at(0)
        write(reporter, 0, 1)
        reporter.committed()
        assert len(arrived(backend.rows, 2)) == 2
        reporter.close()
    (record,) = caplog.records
    assert "the tracker recorder failed (ConnectionError: no route)" in record.getMessage()


def test_what_never_arrived_is_sent_by_the_next_process(tmp_path):
    reporter = reporter_with(tmp_path, Recorder([], failures=10**9))
    reporter.begin_at(0)
    write(reporter, 0, 1)
    reporter.committed()
    reporter.close()
    backend = Recorder([])
    reporter = reporter_with(tmp_path, backend)
    reporter.begin_at(2)
    reporter.close()
    assert [steps_done for steps_done, _ in backend.rows] == [1, 2]


def test_a_tracker_that_hangs_delays_no_step_and_the_end_only_up_to_a_limit(tmp_path, caplog):
    class Hanging(Recorder):
        def open(self, run, run_id):
            threading.Event().wait()

    reporter = reporter_with(tmp_path, Hanging([]), close_limit_s=0.2)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        reporter.begin_at(0)
        for step in range(50):
            write(reporter, step)
            reporter.committed()
        reporter.close()
    assert time.monotonic() - started < 10
    assert "did not finish within" in caplog.text
    assert len(reporter.rows()) == 50


def test_a_full_disk_for_its_own_file_is_a_failure_like_others(tmp_path, caplog):
    (tmp_path / "trackers").touch()
    backend = Recorder([])
    with caplog.at_level(logging.WARNING):
        reporter = reporter_with(tmp_path, backend)
        reporter.begin_at(0)
        write(reporter, 0)
        reporter.committed()
        reporter.close()
    assert caplog.text.count("the tracker recorder failed") == 1


def test_what_is_kept_is_plain_json(tmp_path):
    reporter = reporter_with(tmp_path, Recorder([]))
    reporter.begin_at(0)
    write(reporter, 0)
    reporter.committed()
    reporter.close()
    kept = json.loads((tmp_path / "trackers" / "recorder.json").read_text())
    assert kept["num_rows"] == 1
    assert len(kept["run_id"]) == 12

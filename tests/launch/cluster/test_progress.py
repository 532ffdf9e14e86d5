"""Progress in logs: what is done and what is left, now and then, and of the whole work alone."""

import io
import logging
import sys

import pytest

from launch.cluster import progress
from launch.cluster.progress import Progress, counted, remaining_s, spoken


@pytest.fixture
def clock(monkeypatch, caplog):
    """Moves the time on by hand."""
    caplog.set_level(logging.INFO)
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def pass_s(seconds):
        now[0] += seconds

    return pass_s


def said(caplog):
    return [record.getMessage() for record in caplog.records]


def test_a_log_says_every_few_seconds_what_is_left(clock, caplog):
    for _ in counted(range(20), "samples"):
        clock(2)
    assert said(caplog) == [
        f"samples: {n} of 20, {2 * (20 - n)} s left" for n in (3, 6, 9, 12, 15)
    ], "the last seconds are not worth a line"


def test_short_work_says_nothing(clock, caplog):
    for _ in counted(range(4), "samples"):
        clock(1)
    assert said(caplog) == []


def test_parts_are_silent_once_the_whole_can_tell_the_time(clock, caplog):
    for _ in counted(["first", "second"], "turns"):
        for _ in counted(range(4), "episodes"):
            clock(5)
    assert said(caplog) == [
        "episodes: 1 of 4, 15 s left",
        "episodes: 2 of 4, 10 s left",
        "episodes: 3 of 4, 5 s left",
        "turns: 1 of 2, 20 s left",
    ]


def test_a_slow_beginning_is_not_taken_for_the_pace(clock, caplog):
    with Progress("samples", 101) as shown:
        for num_done in (1, 11, 21):
            clock(20 if num_done == 1 else 5)
            shown.update(num_done)
    assert said(caplog) == [
        "samples: 11 of 101, 45 s left",
        "samples: 21 of 101, 40 s left",
    ]


def test_after_a_failure_the_next_work_is_shown_again(clock, caplog):
    with pytest.raises(ZeroDivisionError):
        _ = [1 / number for number in counted(range(2), "turns")]
    with Progress("samples", 9) as shown:
        clock(6)
        shown.update(3)
    assert said(caplog) == ["samples: 3 of 9, 12 s left"]


def test_a_terminal_gets_a_bar(clock, caplog, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for _ in counted(range(4), "samples"):
        clock(6)
    assert "samples" in terminal.getvalue()
    assert said(caplog) == []


def test_durations_as_they_are_spoken():
    assert remaining_s(10.0, 0, 5) == float("inf")
    assert remaining_s(10.0, 2, 5) == 15.0
    assert [spoken(s) for s in (0.4, 99, 150, 5990, 9000)] == [
        "0 s",
        "99 s",
        "2 min",
        "100 min",
        "2.5 h",
    ]

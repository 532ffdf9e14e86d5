"""Waits say what they wait for."""

import logging
import time

from launch.cluster import waiting
from launch.cluster.waiting import Waiting, telling


def said(caplog):
    return [record.message for record in caplog.records]


def test_a_loop_says_it_at_intervals_unless_something_was_done(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    wait = Waiting(60)
    for _ in range(45):
        now[0] += 1
        if now[0] == 115:
            wait.progressed()
        wait.say(lambda: "the moon")
    assert said(caplog) == [f"waiting for the moon ({s} of 60 s)" for s in (10, 25, 35, 45)]
    assert not wait.is_over()
    now[0] += 15
    assert wait.is_over()


def test_a_call_that_blocks_is_said_from_beside(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(waiting, "SAY_EVERY_S", 0.02)
    with telling("the store"):
        deadline = time.monotonic() + 60
        while len(said(caplog)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said(caplog)[0] == "waiting for the store (0 s so far)"
    count = len(said(caplog))
    time.sleep(0.1)
    assert len(said(caplog)) <= count + 1, "it ends with the call"

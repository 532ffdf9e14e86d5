import time
from contextlib import suppress

import pytest
import torch

from envs.spec import Elapsed, in_ms
from rollout.latency.clock import ThreadClock, WallClock, clock_for
from rollout.latency.hooks import Timeline

CPU = torch.device("cpu")


def test_one_thread_is_timed_by_its_own_cpu_time_and_several_by_the_wall():
    assert clock_for(CPU).name == "thread_cpu_time"
    assert clock_for(CPU, "wall").name == "wall"
    torch.set_num_threads(2)
    try:
        assert clock_for(CPU).name == "wall"
    finally:
        torch.set_num_threads(1)
    with pytest.raises(ValueError, match="no latency clock for device meta"):
        clock_for(torch.device("meta"))


def test_waiting_takes_time_on_the_wall_alone():
    timeline = Timeline(ThreadClock())
    with timeline.recorded() as stages:
        with timeline.span("asleep"):
            time.sleep(0.05)
        with timeline.span("at work"):
            end = time.perf_counter() + 0.02
            while time.perf_counter() < end:
                pass
    assert stages["asleep"].ms < 10
    assert stages["asleep"].wall_ms >= 50
    assert 0 < stages["at work"].ms <= stages["at work"].wall_ms + 0.1
    assert in_ms(stages) == {name: elapsed.ms for name, elapsed in stages.items()}


def test_spans_of_one_name_add_up_on_both_clocks():
    timeline = Timeline(WallClock())
    with timeline.recorded() as stages:
        timeline.add("a", (0, 0), (10**6, 2 * 10**6))
        timeline.add("a", (10**6, 0), (4 * 10**6, 10**6))
    assert stages == {"a": Elapsed(4.0, 3.0)}


def test_a_block_that_raises_leaves_no_span():
    timeline = Timeline(WallClock())
    with suppress(RuntimeError), timeline.recorded() as lost:
        timeline.add("a", (0, 0), (10**6, 10**6))
        raise RuntimeError("boom")
    with timeline.recorded() as stages:
        timeline.add("b", (0, 0), (10**6, 10**6))
    assert (lost, set(stages)) == ({}, {"b"})


def test_the_wall_clock_is_refused_on_cuda():
    with pytest.raises(ValueError, match="cannot measure a GPU"):
        clock_for(torch.device("cuda"), "wall")


class WaitingClock:
    """A device that the host runs ahead of: its times are known a while after the last mark."""

    name, waits = "waiting", True

    def mark(self):
        return 0

    def read_ms(self, pairs):
        time.sleep(0.03)
        return [1.0 for _ in pairs]


def test_waiting_for_the_device_counts_on_the_wall():
    timeline = Timeline(WaitingClock())
    with timeline.recorded() as stages:
        for name in ("first", "last"):
            with timeline.span(name):
                pass
    assert stages["first"].wall_ms < 30 <= stages["last"].wall_ms
    assert sum(elapsed.ms for elapsed in stages.values()) == 2.0

import time

import pytest
import torch

from rollout.latency.clock import ThreadClock, WallClock, clock_for
from rollout.latency.hooks import Elapsed, Timeline, in_ms

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
    with timeline.span("asleep"):
        time.sleep(0.05)
    with timeline.span("at work"):
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass
    stages = timeline.take()
    assert stages["asleep"].ms < 10
    assert stages["asleep"].wall_ms >= 50
    assert 0 < stages["at work"].ms <= stages["at work"].wall_ms + 0.1
    assert in_ms(stages) == {name: elapsed.ms for name, elapsed in stages.items()}


def test_spans_of_one_name_add_up_on_both_clocks():
    timeline = Timeline(WallClock())
    timeline.add("a", (0, 0), (10**6, 2 * 10**6))
    timeline.add("a", (10**6, 0), (4 * 10**6, 10**6))
    assert timeline.take() == {"a": Elapsed(4.0, 3.0)}
    assert timeline.take() == {}

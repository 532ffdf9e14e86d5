"""What a lost actor's long error message comes down to."""

from launch.cluster.slots import last_line

KILLED = """The actor died unexpectedly before finishing this task.
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, \
ID: 4f5c) was 30.41GB used / 32.00GB limit (0.950312), which exceeds the memory usage threshold.
Refer to the documentation on how to address the out of memory issue. Consider provisioning more
memory on this node or reducing task parallelism by requesting more CPUs per task. To disable
worker killing, set the environment variable `RAY_memory_monitor_refresh_ms` to zero."""


def test_a_kill_by_the_memory_monitor_is_one_line_without_rays_help():
    line = last_line(KILLED)
    assert line.startswith(
        "Ray's memory monitor killed it because 30.41 of 32.00 GB of node 10.0.0.7"
    )
    assert "fewer actors with --cluster.num-actors" in line
    assert "RAY_" not in line


def test_escape_codes_are_left_out():
    trace = "\x1b[36mray::Actor.run()\x1b[39m (pid=1)\nFile x\nValueError: \x1b[31mno\x1b[0m"
    assert last_line(trace) == "ValueError: no"

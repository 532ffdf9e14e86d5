"""What differs between the settings of runs."""

from launch.analysis.settings import ABSENT, differing


def test_only_what_differs_is_named_and_an_absent_setting_is_no_value():
    old = {"seed": 1, "cluster": {"num_actors": 2}}
    new = {"seed": 1, "cluster": {"num_actors": 3}, "faults": {"schedule": None}}
    assert differing([old, new]) == {
        "cluster.num_actors": [2, 3],
        "faults.schedule": [ABSENT, None],
    }

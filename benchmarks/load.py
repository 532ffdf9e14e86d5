"""Disturbs the machine: busy loops, switched on and off every minute.

python -m benchmarks.load --minutes 12
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.options import read_options
from launch.cluster.console import check_first, one_clear_error


@dataclass(frozen=True, slots=True, kw_only=True)
class DisturbanceConfig:
    """One disturbance.

    Attributes:
        quick: tiny sizes, to see within a minute that it runs.
        minutes: how long it lasts.
        processes: number of busy loops.
        period_s: seconds that the loops run, and then rest.
    """

    quick: bool = False
    minutes: float = 12.0
    processes: int = 2
    period_s: float = 60.0


QUICK = DisturbanceConfig(quick=True, minutes=0.01, processes=1, period_s=0.2)


if __name__ == "__main__":
    check_first(lambda: read_options(QUICK, __doc__))  # before the imports that take seconds

import time

from benchmarks.clock import BUSY_LOOP, beside


def main() -> int:
    """Switches the load on and off until the time is up."""
    config = read_options(QUICK, __doc__)
    ends = time.monotonic() + 60 * config.minutes
    while time.monotonic() < ends:
        with beside(BUSY_LOOP, config.processes, settle_s=0.0):
            time.sleep(config.period_s)
        time.sleep(config.period_s)
    return 0


if __name__ == "__main__":
    sys.exit(one_clear_error(main))

"""Disturbs the machine: busy loops, switched on and off every minute.

python -m benchmarks.load --minutes 12
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import tyro

from benchmarks.clock import BUSY_LOOP, beside


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """One disturbance.

    Attributes:
        minutes: how long it lasts.
        processes: number of busy loops.
        period_s: seconds that the loops run, and then rest.
    """

    minutes: float = 12.0
    processes: int = 2
    period_s: float = 60.0


def main(config: LoadConfig) -> None:
    """Switches the load on and off until the time is over."""
    ends = time.monotonic() + 60 * config.minutes
    while time.monotonic() < ends:
        with beside(BUSY_LOOP, config.processes):
            time.sleep(config.period_s)
        time.sleep(config.period_s)


if __name__ == "__main__":
    main(tyro.cli(LoadConfig, description=__doc__))

"""A deterministic source of latencies, for tests and dry runs only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from envs.spec import Knobs, all_knobs
from rollout.molmoe.config import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedLatency:
    """Latencies from a table instead of a clock.

    What is learned from it says nothing about a device, so every log line and checkpoint of such a
    run carries `label`.

    Attributes:
        table_ms: latency in ms by `str(knobs)`, for all 225 configurations.
        label: source of the table.
    """

    table_ms: Mapping[str, float]
    label: str

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Reads {"low-p1-k4-b12": ms, ...}; raises ValueError naming what is missing."""
        table = read_json(path, 'write latencies as {"low-p1-k4-b12": ms, ...}')
        missing = [str(knobs) for knobs in all_knobs() if str(knobs) not in table]
        if missing:
            raise ValueError(f"{path} lacks {len(missing)} configurations, such as {missing[0]}")
        return cls(table_ms=table, label=str(path))

    def latency_ms(self, knobs: Knobs) -> float:
        """The latency of a configuration in ms; raises ValueError if the table lacks it."""
        try:
            return float(self.table_ms[str(knobs)])
        except KeyError:
            raise ValueError(f"the latency table {self.label} lacks {knobs}") from None

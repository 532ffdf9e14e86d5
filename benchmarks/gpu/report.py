"""What the acceptance run found: one JSON file and one printed table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure.

    Attributes:
        what: description of what was measured.
        value: its median, or the figure itself.
        unit: its unit.
        low: first quartile, None for a single figure.
        high: third quartile, None for a single figure.
        at_most: the goal, None without one.
    """

    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    at_most: float | None = None

    @property
    def is_missed(self) -> bool:
        """Whether there is a goal and the figure is beyond it."""
        return self.at_most is not None and not self.value <= self.at_most

    def cells(self) -> tuple[str, str, str]:
        """What, value with unit, and goal, as texts."""
        spread = "" if self.low is None else f" [{self.low:.3g} {self.high:.3g}]"
        goal = "" if self.at_most is None else f"at most {self.at_most:g}"
        return self.what, f"{self.value:.4g}{spread} {self.unit}", goal + " MISSED" * self.is_missed


@dataclass(slots=True, kw_only=True)
class Report:
    """The figures of all sections, and what went wrong.

    Attributes:
        facts: device, versions and sizes.
        sections: figures by section.
        seconds: duration of each section.
        errors: the error of each section that failed or was left out.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, Sequence[Figure]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether every section ran and every goal is met."""
        missed = any(figure.is_missed for figures in self.sections.values() for figure in figures)
        return not self.errors and not missed

    def write(self, path: Path) -> None:
        """Writes everything as JSON."""
        content = {
            "facts": self.facts,
            "sections": {
                name: [{**asdict(figure), "is_missed": figure.is_missed} for figure in figures]
                for name, figures in self.sections.items()
            },
            "seconds": self.seconds,
            "errors": self.errors,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    def table(self) -> str:
        """Everything as a table in Markdown."""
        lines = [f"{name}: {value}" for name, value in self.facts.items()]
        lines += ["", "| what | figure | goal |", "| --- | --- | --- |"]
        for name, figures in self.sections.items():
            lines.append(f"| **{name}**, {self.seconds[name]:.0f} s | | |")
            lines += ["| " + " | ".join(figure.cells()) + " |" for figure in figures]
        lines += [f"| **{name}** | {error} | FAILED |" for name, error in self.errors.items()]
        return "\n".join(lines)

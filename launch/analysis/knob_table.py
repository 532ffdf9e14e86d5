"""A policy that is a table: configurations by budget, and perhaps by task."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from envs.spec import Knobs


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobTable:
    """Configurations by budget; with a single budget, one configuration for all.

    Attributes:
        budgets_ms: K budgets in ascending order; each entry is for budgets from its own to the
            next one.
        knobs: the configuration of each budget, [K].
        by_task: the same for single tasks, in place of `knobs`.
    """

    budgets_ms: tuple[float, ...]
    knobs: tuple[Knobs, ...]
    by_task: Mapping[str, tuple[Knobs, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in (self.knobs, *self.by_task.values()):
            if not row or len(row) != len(self.budgets_ms):
                raise ValueError(
                    f"a table of {len(self.budgets_ms)} budgets has {len(row)} configurations: "
                    "give one for each, at least one"
                )

    @classmethod
    def fixed(cls, knobs: Knobs) -> KnobTable:
        """The same configuration for every budget and task."""
        return cls(budgets_ms=(0.0,), knobs=(knobs,))

    def at(self, budget_ms: float, task: str = "") -> Knobs:
        """The configuration for a budget; below the first budget, that of the first one."""
        row = self.by_task.get(task, self.knobs)
        return row[max(bisect_right(self.budgets_ms, budget_ms) - 1, 0)]

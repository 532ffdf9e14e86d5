"""A policy that is a table: configurations by price and budget, and perhaps by task."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.prices import FREE
from envs.spec import Knobs

Rows = tuple[tuple[Knobs, ...], ...]
"""A configuration for each budget, in a row for each price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobTable:
    """Configurations by price and budget; one of each is one configuration for all.

    Attributes:
        budgets_ms: K budgets in ascending order; each entry is for budgets from its own to the
            next one.
        prices: P prices in ascending order; each row is for prices from its own to the next one.
        knobs: the configuration of each price and budget, [P][K].
        by_task: the same for single tasks, in place of `knobs`.
    """

    budgets_ms: tuple[float, ...]
    prices: tuple[float, ...] = (FREE,)
    knobs: Rows
    by_task: Mapping[str, Rows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = [len(self.budgets_ms)] * len(self.prices)
        for rows in (self.knobs, *self.by_task.values()):
            if not shape or not shape[0] or [len(row) for row in rows] != shape:
                raise ValueError(
                    f"a table of {len(self.prices)} prices and {len(self.budgets_ms)} budgets has "
                    f"rows of {[len(row) for row in rows]} configurations: give one for each, at "
                    "least one"
                )

    @classmethod
    def fixed(cls, knobs: Knobs) -> KnobTable:
        """The same configuration for every price, budget and task."""
        return cls(budgets_ms=(0.0,), knobs=((knobs,),))

    @classmethod
    def by_price(cls, tables: Mapping[float, KnobTable]) -> KnobTable:
        """Joins tables for single prices, of the same budgets and tasks, in ascending order."""
        parts = [table for _, table in sorted(tables.items())]

        def joined(rows: Sequence[Rows]) -> Rows:
            return tuple(row for one in rows for row in one)

        return cls(
            budgets_ms=parts[0].budgets_ms,
            prices=tuple(sorted(tables)),
            knobs=joined([part.knobs for part in parts]),
            by_task={
                task: joined([part.by_task[task] for part in parts]) for task in parts[0].by_task
            },
        )

    def at(self, budget_ms: float, task: str = "", price: float = FREE) -> Knobs:
        """The configuration for a budget and a price; below the first ones, that of the first."""
        rows = self.by_task.get(task, self.knobs)
        row = rows[max(bisect_right(self.prices, price) - 1, 0)]
        return row[max(bisect_right(self.budgets_ms, budget_ms) - 1, 0)]

    def configurations(self) -> tuple[Knobs, ...]:
        """Every configuration that any entry has, once."""
        tables = (self.knobs, *self.by_task.values())
        return tuple(sorted({knobs for rows in tables for row in rows for knobs in row}))

"""What `benchmarks.goodput` measured: what became of every request, tables, verdict and figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from launch.analysis.statistics import Interval

CONTROLLER, FULL = "controller", "full"


class Outcome(StrEnum):
    """What became of a request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    FAILED = "failed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One request's end, as the client saw it.

    Attributes:
        outcome: what became of it: `abandoned` if the client gave up waiting.
        score: of the answer, 0 without one.
        latency_ms: from the moment when it was due to its end.
        budget_ms: its budget.
        due_s: when it was due, from the begin of its turn.
    """

    outcome: Outcome
    score: float
    latency_ms: float
    budget_ms: float
    due_s: float = 0.0

    @property
    def is_in_time(self) -> bool:
        """Whether an answer came within the budget."""
        return self.outcome == Outcome.ANSWERED and self.latency_ms <= self.budget_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy at one rate; the six shares add up to 1.

    Attributes:
        policy: name of the policy.
        rate: requests per second.
        turns: sum of the scores of answers within budget, per second, in each turn.
        right: share of requests answered rightly and in time: the mean score of those in time.
        wrong: share that was answered in time, and wrongly.
        late: share that was answered after its budget.
        refused: share that the server refused, because its queue was full or the budget too short.
        failed: share that ended with another error.
        abandoned: share that the client gave up.
        p50_ms: median latency of answers.
        p95_ms: its 95th percentile.
        num_requests: number of requests.
    """

    policy: str
    rate: float
    turns: tuple[float, ...]
    right: float
    wrong: float
    late: float
    refused: float
    failed: float
    abandoned: float
    p50_ms: float
    p95_ms: float
    num_requests: int

    @classmethod
    def of(cls, policy: str, rate: float, turns: Sequence[Sequence[Reply]], turn_s: float) -> Row:
        """Summarises the replies to the requests of turns of some seconds each."""
        replies = [reply for turn in turns for reply in turn]
        answered = [r for r in replies if r.outcome == Outcome.ANSWERED]
        count = max(1, len(replies))
        in_time = sum(r.is_in_time for r in replies) / count
        right = sum(r.score for r in replies if r.is_in_time) / count
        p50_ms, p95_ms = np.quantile([r.latency_ms for r in answered] or [np.nan], [0.5, 0.95])

        def share(outcome: Outcome) -> float:
            return sum(r.outcome == outcome for r in replies) / count

        return cls(
            policy=policy,
            rate=rate,
            turns=tuple(sum(r.score for r in turn if r.is_in_time) / turn_s for turn in turns),
            right=right,
            wrong=in_time - right,
            late=share(Outcome.ANSWERED) - in_time,
            refused=share(Outcome.REFUSED),
            failed=share(Outcome.FAILED),
            abandoned=share(Outcome.ABANDONED),
            p50_ms=float(p50_ms),
            p95_ms=float(p95_ms),
            num_requests=len(replies),
        )

    @property
    def goodput(self) -> Interval:
        """Right answers in time per second, with its interval over the turns."""
        return Interval.of(np.array(self.turns))

    @property
    def missed(self) -> float:
        """Share of requests that were not answered within their budget."""
        return self.late + self.refused + self.failed + self.abandoned

    def line(self) -> str:
        """The row for the console."""
        shares = ("right", "wrong", "late", "refused", "failed", "abandoned")
        told = "  ".join(f"{name} {getattr(self, name):.1%}" for name in shares)
        return (
            f"{self.rate:g}/s {self.policy:<20} goodput {self.goodput}/s  {told}  "
            f"p50 {self.p50_ms:.0f} ms  p95 {self.p95_ms:.0f} ms"
        )


def best_of(rows: Sequence[Row], names: Sequence[str]) -> Row | None:
    """Of some policies at one rate the one with the highest goodput; None without any of them."""
    among = [row for row in rows if row.policy in names]
    return max(among, key=lambda row: row.goodput.mean, default=None)


def ratio(ours: Row, theirs: Row) -> Interval | None:
    """Ratio of two goodputs, with its interval over the turns, which both share.

    By the delta method, so that a turn without a right answer does no harm; None if the other one
    has no right answer at all.
    """
    a, b = np.array(ours.turns), np.array(theirs.turns)
    if not b.any():
        return None
    mean = float(a.mean() / b.mean())
    return Interval(mean, Interval.of((a - mean * b) / b.mean()).half_width)


def verdict(rows: Sequence[Row], fixed: Sequence[str]) -> list[str]:
    """The controller, at every rate, against the best fixed configuration and the full one."""
    lines = []
    for rate in sorted({row.rate for row in rows}):
        there = [row for row in rows if row.rate == rate]
        ours = best_of(there, [CONTROLLER])
        best, full = best_of(there, fixed), best_of(there, [FULL])
        if ours is None:
            continue
        told = []
        if best is not None and (found := ratio(ours, best)):
            told.append(f"{found} of the best fixed configuration, {best.policy}")
        if full is not None and (found := ratio(ours, full)):
            misses = "more" if full.missed > 0.5 else "less"
            told.append(f"{found} of the full one, which misses {misses} than half")
        if told:
            lines.append(f"{rate:g}/s: the controller's goodput is {'; '.join(told)}")
    return lines


def table_of(rows: Sequence[Row], fixed: Sequence[str]) -> Table:
    """Goodput by policy and rate, and the best fixed configuration of each rate in hindsight."""
    rates = sorted({row.rate for row in rows})
    table = Table("policy", *(f"{rate:g}/s" for rate in rates))
    for policy in dict.fromkeys(row.policy for row in rows):
        ours = {row.rate: row for row in rows if row.policy == policy}
        table.add_row(policy, *(str(ours[rate].goodput) for rate in rates))
    best = [best_of([row for row in rows if row.rate == rate], fixed) for rate in rates]
    cells = ["" if row is None else f"{row.goodput} ({row.policy})" for row in best]
    table.add_row("best fixed one in hindsight", *cells)
    return table


def figure_of(rows: Sequence[Row], budgets_ms: Sequence[float]) -> Figure:
    """Goodput and missed budgets against the rate."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for policy in dict.fromkeys(row.policy for row in rows):
        ours = [row for row in rows if row.policy == policy]
        width = 2.5 if policy == CONTROLLER else 1.3
        rates = [row.rate for row in ours]
        goodput = [row.goodput for row in ours]
        bars = [0.0 if np.isnan(g.half_width) else g.half_width for g in goodput]
        left.errorbar(
            rates, [g.mean for g in goodput], bars, fmt="o-", label=policy, lw=width, capsize=2
        )
        right.plot(rates, [100 * row.missed for row in ours], "o-", label=policy, linewidth=width)
    budgets = ", ".join(f"{ms:g}" for ms in budgets_ms)
    left.set(ylabel="right answers within budget, 1/s", title=f"budgets {budgets} ms")
    right.set(ylabel="requests not answered within budget, %", ylim=(0, 100))
    right.axhline(50, color="grey", linestyle=":")
    for axes in (left, right):
        axes.set_xlabel("requests, 1/s")
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    left.legend(fontsize="small")
    return figure

"""What each knob costs in accuracy and saves in time, from the rows of a profile.

Differences are paired by sample and come with 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from envs.reward import score_within_budget
from envs.spec import CHEAPEST_KNOBS, FULL_KNOBS, Knobs, Tier
from launch.analysis.statistics import Interval
from rollout.profiling.profile_table import ProfileTable

CUTS = {
    "low tier": Knobs(tier=Tier.LOW, position=1, top_k=8, num_blocks=16),
    "top-k 4": Knobs(tier=Tier.HIGH, position=1, top_k=4, num_blocks=16),
    "12 blocks": Knobs(tier=Tier.HIGH, position=1, top_k=8, num_blocks=12),
    "cheapest": CHEAPEST_KNOBS,
}
"""Each knob at its cheapest value with the others at full, and all at their cheapest."""

END_TO_END = ("T_vision_total", "T_LLM_prefill", "T_LLM_decode")
LANGUAGE_MODEL = END_TO_END[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobEffects:
    """Differences between cut configurations and the full one, paired by sample.

    Attributes:
        cuts: names of the cuts, in the order of the other fields' lists.
        full: by task, number of samples and the full configuration's accuracy.
        lost: by task, accuracy lost by each cut; the key "mixture" holds all samples.
        language_model_share: language model's time relative to the full configuration, median.
        latency_share: the same for the whole latency.
    """

    cuts: tuple[str, ...]
    full: dict[str, tuple[int, Interval]]
    lost: dict[str, list[Interval]]
    language_model_share: list[float]
    latency_share: list[float]


def knob_effects(rows: Sequence[dict[str, Any]]) -> KnobEffects | None:
    """The effects from the rows of a profile; None if it lacks one of the configurations."""
    names = [configuration_name(record) for record in rows[0]["records"]]
    wanted = {name: str(knobs) for name, knobs in CUTS.items()}
    if not {str(FULL_KNOBS), *wanted.values()} <= set(names):
        return None

    def column(name: str, value: Callable[[dict[str, Any]], float]) -> np.ndarray:
        place = names.index(name)
        return np.array([value(row["records"][place]) for row in rows])

    def share(name: str, stages: tuple[str, ...]) -> float:
        def time(record: dict[str, Any]) -> float:
            return sum(record[stage] for stage in stages)

        return float(np.median(column(name, time) / column(str(FULL_KNOBS), time)))

    tasks = np.array([row["records"][0]["task"] for row in rows])
    groups = {task: tasks == task for task in sorted(set(tasks))}
    groups["mixture"] = np.ones(len(rows), dtype=bool)
    full = column(str(FULL_KNOBS), lambda record: record["score"])
    lost: dict[str, list[Interval]] = {task: [] for task in groups}
    for name in wanted.values():
        difference = full - column(name, lambda record: record["score"])
        for task, members in groups.items():
            lost[task].append(Interval.of(difference[members]))
    return KnobEffects(
        cuts=tuple(wanted),
        full={task: (int(m.sum()), Interval.of(full[m])) for task, m in groups.items()},
        lost=lost,
        language_model_share=[share(name, LANGUAGE_MODEL) for name in wanted.values()],
        latency_share=[share(name, END_TO_END) for name in wanted.values()],
    )


def configuration_name(record: dict[str, Any]) -> str:
    """The configuration of a record by name, such as low-p1-k4-b12."""
    return (
        f"{record['tier']}-p{record['insertion_position']}-k{record['top_k']}"
        f"-b{record['num_active_blocks']}"
    )


def effects_table(effects: KnobEffects) -> Table:
    """A table of the accuracy lost by each cut and task, and of the remaining time."""
    table = Table("accuracy lost by", *effects.cuts, "full configuration", "samples")
    for task, cells in effects.lost.items():
        count, accuracy = effects.full[task]
        lost = (interval.signed() for interval in cells)
        table.add_row(task, *lost, str(accuracy), str(count))
    for title, shares in (
        ("language model's time", effects.language_model_share),
        ("whole latency", effects.latency_share),
    ):
        table.add_row(title, *(f"x {share:.2f}" for share in shares))
    return table


def best_by_task_table(table: ProfileTable) -> Table:
    """A table of each task's best configuration within three budgets.

    Budgets are quantiles of the median latencies; of equally good configurations the fastest is
    shown.
    """
    median_C = np.median(table.latencies_ms, axis=0)
    budgets_ms = np.quantile(median_C, (0.15, 0.4, 0.7))
    shown = Table("best within", *(f"{budget:.0f} ms" for budget in budgets_ms))
    for task in sorted(set(table.tasks)):
        part = table.only_task(task)
        cells = []
        for budget_ms in budgets_ms:
            accuracy_C = score_within_budget(part.scores, part.latencies_ms, budget_ms).mean(0)
            best = max(range(len(median_C)), key=lambda c: (round(accuracy_C[c], 6), -median_C[c]))
            cells.append(f"{table.configurations[best]} ({accuracy_C[best]:.2f})")
        shown.add_row(task, *cells)
    return shown

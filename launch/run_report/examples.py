"""Answered questions of the final evaluation, with the pictures that were asked about."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from envs.reward import is_violation
from envs.spec import Knobs, Sample
from envs.tasks.registry import TASKS, load_tasks
from launch.analysis.greedy_sweep import GreedySweep
from rollout.profiling.conversion import sample_place

NUM_EXAMPLES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One episode.

    Attributes:
        task: name of the task.
        sample: the question; None if it cannot be rendered again, as those of data sets.
        sample_id: its id.
        answer: what was answered.
        score: 0 to 1, regardless of the latency.
        knobs: what the controller chose.
        latency_ms: calibrated ms, like the budget.
        budget_ms: the budget.
        is_late: whether the latency exceeds the budget.
    """

    task: str
    sample: Sample | None
    sample_id: str
    answer: str
    score: float
    knobs: Knobs
    latency_ms: float
    budget_ms: float
    is_late: bool


def examples(sweep: GreedySweep, worker: Mapping[str, Any]) -> list[Example]:
    """The first samples of each task in turn, at rising budgets; results play no part.

    Args:
        sweep: the episodes at one price.
        worker: the run's worker configuration, as JSON.
    """
    found, num_budgets = [], len(sweep.budgets_ms)
    rows = first_of_each(sweep.tasks, NUM_EXAMPLES)
    for number, row in enumerate(rows):
        column = number * (num_budgets - 1) // max(len(rows) - 1, 1)
        budget_ms, latency_ms = sweep.budgets_ms[column], sweep.latencies_ms[row, column]
        found.append(
            Example(
                task=sweep.tasks[row],
                sample=rendered(sweep.sample_ids[row], sweep.tasks[row], worker),
                sample_id=sweep.sample_ids[row],
                answer=str(sweep.answers[row, column]),
                score=float(sweep.scores[row, column]),
                knobs=Knobs.from_indices(sweep.actions[row, column]),
                latency_ms=float(latency_ms),
                budget_ms=float(budget_ms),
                is_late=bool(is_violation(latency_ms, budget_ms)),
            )
        )
    return found


def first_of_each(tasks: Sequence[str], count: int) -> list[int]:
    """Rows of the first sample of each task in alphabetical order, then of the second ones."""
    rows_of = {name: [r for r, t in enumerate(tasks) if t == name] for name in sorted(set(tasks))}
    rounds = range(max(map(len, rows_of.values()), default=0))
    ordered = [rows[turn] for turn in rounds for rows in rows_of.values() if turn < len(rows)]
    return ordered[:count]


def rendered(sample_id: str, task: str, worker: Mapping[str, Any]) -> Sample | None:
    """The sample of an id if its task renders its samples, else None: data sets stay closed."""
    if task not in {known.name for known in TASKS} or task not in worker.get("tasks", ()):
        return None
    split, index = sample_place(sample_id)
    sample = load_tasks((task,))[task].sample(split, index)
    return sample if sample.id == sample_id else None


def card(example: Example) -> str:
    """One example as HTML."""
    sample = example.sample
    question = example.sample_id if sample is None else sample.prompt
    reference = "" if sample is None else f"expected {' or '.join(sample.answers)}"
    chosen = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in example.knobs.to_json().items())
    kind, words = judged(example)
    return (
        f'<li class="card">{picture(sample)}<p class="question">{escape(question)}</p>'
        f'<p class="answer">{escape(example.answer) or "(empty)"} '
        f'<span class="{kind}">{escape(words)}</span></p>'
        f'<p class="soft">{escape(reference)}</p><p class="soft">{escape(chosen)}</p>'
        f"{_budget_bar(example)}</li>"
    )


def score_words(score: float) -> str:
    """A score in words: right, wrong, or how much of it is right."""
    return {0.0: "wrong", 1.0: "right"}.get(score, f"{score:.0%} right")


def judged(example: Example) -> tuple[str, str]:
    """A CSS class and words for how an answer counts."""
    words = score_words(example.score)
    if example.is_late:
        return "bad", f"{words}, but late"
    return ("good" if example.score >= 0.5 else "bad"), words


def picture(sample: Sample | None) -> str:
    """The picture of a question as HTML, or why there is none."""
    if sample is None:
        return '<p class="nopicture">picture not shown: it belongs to a data set</p>'
    if sample.image is None:
        return '<p class="nopicture">question without a picture</p>'
    buffer = io.BytesIO()
    sample.image.save(buffer, format="PNG", optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    width, height = sample.image.size
    return (
        f'<img src="data:image/png;base64,{encoded}" width="{width}" height="{height}" '
        f'alt="the picture that is asked about">'
    )


def _budget_bar(example: Example) -> str:
    """Latency as a bar, with the budget as a mark."""
    scale = 1.05 * max(example.latency_ms, example.budget_ms)
    words = f"{example.latency_ms:.1f} ms of {example.budget_ms:.1f} ms"
    return (
        f'<div class="budget{" late" if example.is_late else ""}" title="{words}">'
        f'<i style="width:{100 * example.latency_ms / scale:.1f}%"></i>'
        f'<u style="left:{100 * example.budget_ms / scale:.1f}%"></u></div>'
        f'<p class="soft">{words}</p>'
    )

"""The same question at several budgets and prices: what was answered, chosen, given up and paid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rich.table import Table
from rich.text import Text

from envs.spec import FULL_KNOBS, HEADS, Knobs, Sample
from launch.analysis.knob_table import KnobTable
from launch.answering.answerer import Answer, Answerer
from launch.answering.policies import ControllerPolicy, TablePolicy
from launch.run_report import markup
from launch.run_report.examples import picture, score_words
from launch.run_report.page import document
from launch.run_report.section import Section

PARTS: Mapping[str, tuple[str, ...]] = {
    "vision": ("copy", "vision_global", "image_feature", "vision_crops", "projector"),
    "controller": ("language_feature", "stage1", "stage2"),
    "prefill": ("embed", "blocks", "head"),
    "decode": ("decode",),
}
"""Stages of an answer, as bars show them."""

GIVEN_UP = {"tier": "crops", "top_k": "experts", "num_blocks": "blocks"}
"""What less of a head's choice saves; the insertion position gives nothing up."""

BAR_LENGTH = 24
"""Characters of the longest bar of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tour:
    """One question, answered by the full configuration and by a controller.

    Attributes:
        sample: the question.
        score: scores an answer, 0 to 1; None if nobody knows what is right.
        partial: what a score between 0 and 1 means, in words.
        full: the answer of the full configuration within the largest budget.
        answers: those of the controller: a row per budget, a column per price.
    """

    sample: Sample
    score: Callable[[str], float] | None
    partial: str
    full: Answer
    answers: Sequence[Sequence[Answer]]

    @property
    def longest_ms(self) -> float:
        """The longest latency or budget, to which bars are drawn."""
        every = [self.full, *(answer for row in self.answers for answer in row)]
        return max(max(answer.latency_ms, answer.budget_ms) for answer in every)

    def verdict(self, answer: Answer) -> str:
        """Right or wrong, if that is known, and whether it was late; empty if there is neither."""
        score = None if self.score is None else self.score(answer.text)
        known = "" if score is None else score_words(score)
        return ", ".join(filter(None, (known, "" if answer.within_budget else "late")))

    @property
    def has_partial(self) -> bool:
        """Whether an answer is partly right."""
        every = [self.full, *(answer for row in self.answers for answer in row)]
        return self.score is not None and any(0 < self.score(one.text) < 1 for one in every)

    def details(self, answer: Answer) -> tuple[str, str, str]:
        """What was chosen, what was given up, and what it cost, in words."""
        share = answer.latency_ms / self.full.latency_ms
        worth = f", worth {answer.price * share:.3f} answers" if answer.price else ""
        cost = f"{answer.latency_ms:.1f} ms, {share:.0%} of full{worth}"
        return str(answer.knobs), given_up(answer.knobs, self.sample.image is not None), cost


def given_up(knobs: Knobs, has_image: bool) -> str:
    """What a configuration does without, compared with the full one."""
    parts = []
    for head, index in zip(HEADS, knobs.indices(), strict=True):
        most, amount = max(head.amounts), head.amounts[index]
        if head.name in GIVEN_UP and amount < most and (has_image or head.name != "tier"):
            parts.append(f"{most - amount}/{most} {GIVEN_UP[head.name]}")
    return f"without {', '.join(parts)}" if parts else "nothing given up"


def take(
    policy: ControllerPolicy,
    sample: Sample,
    score: Callable[[str], float] | None,
    partial: str = "",
    *,
    budgets_ms: Sequence[float],
    prices: Sequence[float],
) -> Tour:
    """Asks the question once for each budget and price; each answer is measured once."""
    table = KnobTable.fixed(FULL_KNOBS)
    full = Answerer(TablePolicy(policy.executor, table, str(FULL_KNOBS), policy.present))
    ours = Answerer(policy)
    ours.follow()
    return Tour(
        sample=sample,
        score=score,
        partial=partial,
        full=full.run(sample, full.terms(max(budgets_ms))),
        answers=[
            [ours.run(sample, ours.terms(budget_ms, price)) for price in prices]
            for budget_ms in budgets_ms
        ],
    )


def parts_ms(answer: Answer) -> list[tuple[str, float]]:
    """Parts of an answer with their times in ms, in the order of PARTS."""
    return [
        (name, sum(answer.stages_ms.get(stage, 0.0) for stage in stages))
        for name, stages in PARTS.items()
    ]


def as_table(tour: Tour) -> Table:
    """The tour as text: a row per budget, a column per price; bars are letters of the parts."""
    legend = ", ".join(f"{name[0]} {name}" for name in PARTS)
    heads = ["budget", *(f"price {answer.price:g}" for answer in tour.answers[0])]
    caption = f"bars: {legend}, | the budget"
    if tour.has_partial:
        caption += f"\npartly right: {tour.partial}"
    table = Table(*heads, caption=caption, show_lines=True)
    for row in tour.answers:
        table.add_row(f"{row[0].budget_ms:g} ms", *(as_text(tour, answer) for answer in row))
    return table


def as_text(tour: Tour, answer: Answer) -> Text:
    """One answer as lines."""
    scale, end, bar = BAR_LENGTH / tour.longest_ms, 0.0, ""
    for name, elapsed_ms in parts_ms(answer):
        end += elapsed_ms * scale
        bar += name[0] * (round(end) - len(bar))
    mark = round(answer.budget_ms * scale)
    bar = f"{bar[:mark]:{mark}}|{bar[mark:]}"
    said = f"{answer.text}  {tour.verdict(answer)}".rstrip()
    return Text("\n".join((said, bar, *tour.details(answer))))


def as_page(tour: Tour, decided_by: str) -> str:
    """The tour as one HTML page that needs no other file."""
    sections = [
        Section(title="The question", build=lambda: _question(tour)),
        Section(title="Answers by budget and price", build=lambda: _grid(tour)),
    ]
    title = "The same question at several budgets and prices"
    return document(title, markup.paragraph(decided_by), sections)


def _question(tour: Tour) -> str:
    expected = f"expected {' or '.join(tour.sample.answers)}" if tour.score else ""
    mark = f"The mark on the bar is the largest budget, {tour.full.budget_ms:g} ms."
    return (
        f'<ul class="examples"><li class="card">{picture(tour.sample)}'
        f"{markup.paragraph(tour.sample.prompt, 'question')}{markup.paragraph(expected, 'soft')}"
        f'</li><li class="card">{markup.paragraph("The full configuration answers")}'
        f"{_cell(tour, tour.full)}{markup.paragraph(mark, 'soft')}</li></ul>{_legend()}"
    )


def _legend() -> str:
    """What the colours of the bars and the mark on them mean."""
    keys = "".join(f'<li><i class="swatch s{n}"></i>{name}</li>' for n, name in enumerate(PARTS, 1))
    return f'<ul class="legend">{keys}<li><u class="mark"></u>the budget</li></ul>'


def _grid(tour: Tour) -> str:
    heads = "".join(f'<th scope="col">price {answer.price:g}</th>' for answer in tour.answers[0])
    rows = "".join(
        f'<tr><th scope="row">{row[0].budget_ms:g} ms</th>'
        + "".join(
            f'<td data-head="price {answer.price:g}">{_cell(tour, answer)}</td>' for answer in row
        )
        + "</tr>"
        for row in tour.answers
    )
    return (
        f'<div class="wide"><table class="tour"><thead><tr><th scope="col">budget</th>{heads}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
        + markup.paragraph(
            "Each answer was measured once, on the device's clock. Full: the full configuration's "
            "time for this question. A price is what that time is worth, in right answers."
            + (f" Partly right: {tour.partial}." if tour.has_partial else ""),
            "soft",
        )
    )


def _cell(tour: Tour, answer: Answer) -> str:
    verdict, scale = tour.verdict(answer), 100 / tour.longest_ms
    is_bad = not answer.within_budget or verdict == "wrong"
    kind = "bad" if is_bad else "good" if verdict == "right" else "soft"
    pieces = "".join(
        f'<i class="s{n}" style="width:{ms * scale:.2f}%" title="{name} {ms:.1f} ms"></i>'
        for n, (name, ms) in enumerate(parts_ms(answer), 1)
    )
    return (
        f'<p class="answer">{escape(answer.text) or "(empty)"} '
        f'<span class="{kind}">{escape(verdict)}</span></p>'
        f'<div class="stack">{pieces}<u style="left:{answer.budget_ms * scale:.2f}%"></u></div>'
        + "".join(markup.paragraph(text, "soft") for text in tour.details(answer))
    )

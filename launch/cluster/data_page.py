"""Prints what was found of data sets, and writes a page of questions with their pictures."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.cluster.data_report import DataFinding, Question

ROLE_FORMAT = " User: {prompt} Assistant:"

_STYLE = """
body { font: 15px/1.45 sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h2 { border-top: 1px solid #bbb; margin-top: 2rem; padding-top: 1rem; }
.question { display: flex; gap: 1.2rem; margin: 1rem 0; }
.question img { align-self: flex-start; border: 1px solid #ccc; max-width: 20rem; }
pre { background: #f4f4f4; margin: 0 0 .5rem; padding: .5rem; white-space: pre-wrap; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
.problem { color: #a00; }
"""


def lines(found: DataFinding, address: str) -> Iterator[str]:
    """What a node found of a data set, a line each."""
    yield f"{found.name} on {address}: {found.source or 'cannot be opened'}"
    for origin in found.origins:
        yield f"  {origin}"
    if found.sizes:
        yield f"  samples: {found.sizes}"
        dropped = ", ".join(f"{count:,} by {name}" for name, count in found.dropped)
        yield f"  samples left out because their picture is held out: {dropped or 'none'}"
    for remark in found.remarks:
        yield f"  note: {remark}"
    for question in found.questions[:1]:
        width, height = question.size
        yield f"  one question ({question.sample_id}, picture {width} x {height}):"
        yield f"    {ROLE_FORMAT.format(prompt=question.prompt)!r}"
        yield f"    answers: {_answers(question)}"
        yield f"    {question.answer!r} scores {question.score:.3f}"


def write_page(path: Path, findings: Sequence[DataFinding]) -> None:
    """Writes one self-contained HTML file, and the folders above it.

    Raises:
        ValueError: it cannot be written.
    """
    parts = [part for found in findings for part in _section(found)]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Data sets</title>'
        f"<style>{_STYLE}</style><h1>Questions as the model reads them</h1>{''.join(parts)}</html>"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error}): name another --show-page") from None


def _section(found: DataFinding) -> Iterator[str]:
    facts = (found.source, *found.origins, found.sizes and f"samples: {found.sizes}")
    yield f"<h2>{html.escape(found.name)}</h2><p>"
    yield "<br>".join(html.escape(fact) for fact in facts if fact) + "</p>"
    for problem in filter(None, (found.problem, *found.notes)):
        yield f'<p class="problem">{html.escape(problem)}</p>'
    for remark in found.remarks:
        yield f"<p>note: {html.escape(remark)}</p>"
    for question in found.questions:
        prompt = html.escape(ROLE_FORMAT.format(prompt=question.prompt))
        width, height = question.size
        yield '<div class="question">'
        if question.picture:
            yield f'<img src="{question.picture}" alt="picture of {question.sample_id}">'
        yield f"<div><pre>{prompt}</pre><p>answers: {html.escape(_answers(question))}<br>"
        yield f"{html.escape(repr(question.answer))} scores {question.score:.3f}<br>"
        yield f"{html.escape(question.sample_id)}, {width} x {height} pixels</p></div></div>"


def _answers(question: Question) -> str:
    """The reference answers, each once with how often it was given."""
    counts = {answer: question.answers.count(answer) for answer in question.answers}
    return ", ".join(f"{a!r}" + (f" x {n}" if n > 1 else "") for a, n in counts.items())

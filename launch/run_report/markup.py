"""Pieces of HTML that sections are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, of which the first column names the row; on phones rows are cards."""
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(f"<tr>{_cells(head, row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="cards"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(head: Sequence[str], row: Sequence[str]) -> str:
    first, *others = row
    cells = [
        f'<td data-head="{escape(name)}"{"" if text else " class=empty"}>{_unbroken(text)}</td>'
        for name, text in zip(head[1:], others, strict=True)
    ]
    return f'<th scope="row">{escape(first)}</th>{"".join(cells)}'


def _unbroken(text: str) -> str:
    """A cell's text, of which a mean and its interval stay on one line."""
    return escape(text.replace(" ± ", "\u00a0±\u00a0"))


def facts(pairs: Mapping[str, str]) -> str:
    """A list of names and values."""
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs.items()
    )
    return f'<dl class="facts">{items}</dl>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{escape(text)}</p>"


def code(text: str) -> str:
    """A command line."""
    return f"<pre><code>{escape(text)}</code></pre>"


def bars(rows: Sequence[tuple[str, Sequence[float]]], unit: str, names: Sequence[str] = ()) -> str:
    """Horizontal bars: per row a name and one value for each of `names`, drawn to one scale."""
    first = 0 if len(names) > 1 else 1  # a single run's bars are in a colour
    longest = max((value for _, values in rows for value in values), default=0.0) or 1.0
    parts = []
    for name, values in rows:
        lines = "".join(
            f'<div class="bar s{first + number}" title="{escape(_bar_title(name, names, number))}: '
            f'{value:.2f} {unit}"><i style="width:{76 * value / longest:.2f}%"></i>'
            f"<b>{value:.2f}</b></div>"
            for number, value in enumerate(values)
        )
        parts.append(f"<dt>{escape(name)}</dt><dd>{lines}</dd>")
    keys = "".join(
        f'<li><i class="swatch s{number}"></i>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    legend = f'<ul class="legend">{keys}</ul>' if len(names) > 1 else ""
    return f'<dl class="bars">{"".join(parts)}</dl>{legend}'


def _bar_title(name: str, names: Sequence[str], number: int) -> str:
    return f"{name}, {names[number]}" if len(names) > 1 else name

"""A part of a report that may fail without the others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from launch.run_report import markup
from launch.run_report.record import MissingPieceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A title, and what makes the HTML under it."""

    title: str
    build: Callable[[], str]

    def html(self) -> str:
        """The section; one sentence says why if it cannot be made."""
        try:
            content = self.build()
        except MissingPieceError as error:
            content = markup.paragraph(str(error), "missing")
        except Exception as error:  # a damaged file must not take the other sections with it
            said = f"{type(error).__name__}: {error}"[:200]
            content = markup.paragraph(f"This part could not be made ({said}).", "missing")
        name = re.sub(r"[^a-z]+", "-", self.title.lower())
        return f'<section id="{name}"><h2>{escape(self.title)}</h2>{content}</section>'

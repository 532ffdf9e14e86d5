"""Prompts byte for byte as the published model was tuned; the role format is added later.

Source: allenai/molmo, olmo/data/data_formatter.py, in the released configuration
(`demo_or_style`: every style of these data sets always precedes its question).
"""

from __future__ import annotations

import string
from collections.abc import Sequence

PUBLISHED_LETTERS = string.ascii_uppercase[:7]
"""The letters that the published code knows; it drops further options silently."""


def styled(style: str, text: str) -> str:
    """A style and the user's text."""
    return f"{style}: {text}"


def after_hint(hint: str, question: str) -> str:
    """The hint, if there is one, and the question on the next line."""
    return f"{hint}\n{question}" if hint else question


def with_options(question: str, options: Sequence[str], *, letters: str) -> str:
    """A question and its options, a line each, with the newline after the last one.

    Options without a letter are left out.
    """
    lines = "".join(
        f"{letter}: {option}\n" for letter, option in zip(letters, options, strict=False)
    )
    return f"{question}\n{lines}"

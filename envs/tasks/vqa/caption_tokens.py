"""Tokens of captions for CIDEr-D: near those of the PTB tokenizer, without Java."""

from __future__ import annotations

import re

PUNCTUATION_TOKENS = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())
"""The 17 tokens that the field's code removes.

The tokens are lower case by then, so that the four names of brackets never match: brackets stay,
as -lrb- and so on.
"""

_WRITTEN = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    '"': "''",
    "“": "``",
    "”": "''",
    "‘": "`",
    "–": "--",
    "—": "--",
    "…": "...",
}
"""Signs that the PTB tokenizer writes in another way."""

_TOKEN = re.compile(
    r"(?:[^\W\d_]\.){2,}(?!\w)|o'clock\b"  # u.s., p.m.
    r"|[^\W_]+?(?=n't\b)|n't\b"  # do n't
    r"|'(?:s|re|ve|ll|d|m)\b"  # man 's
    r"|\d+(?:[.,:]\d+)+"  # 3,000 and 3:30
    r"|\w+(?:[-/.]\w+)*"  # t-shirt, and/or, 3.5
    r"|-{2,}|\.{3,}|[?!]{2,}|``|''|[^\w\s]"
)


def caption_tokens(text: str) -> list[str]:
    """Lower-case tokens of a caption without the 17 punctuation tokens.

    This is NOT the PTB tokenizer of Stanford CoreNLP (Java), which published figures use. It
    agrees on words, clitics ("man 's", "do n't"), hyphens, numbers and brackets, and differs in
    rare ones ("cannot", "gonna", "rock'n'roll", "mr.", e-mail addresses). State with each figure
    which of the two it uses.
    """
    found: list[str] = _TOKEN.findall(text.lower().replace("’", "'"))
    tokens = [_WRITTEN.get(token, token) for token in found]
    return [token for token in tokens if token.strip("-.") and token not in PUNCTUATION_TOKENS]

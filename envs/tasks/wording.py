"""Question wordings: openers x bodies x endings, assigned to the splits without overlap.

Every word occurs in training; a held-out wording is a new combination of known words.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from envs.tasks.scene import SPLITS, check_split


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """All ways to ask one kind of question; `bodies` hold `{fields}` to fill in."""

    openers: tuple[str, ...]
    bodies: tuple[str, ...]
    endings: tuple[str, ...] = ("", "?", "please", "now", "here")

    def ask(self, split: str, rng: np.random.Generator, **fields: object) -> str:
        """A random wording of the split with its fields filled in."""
        choices = templates(self, check_split(split))
        return choices[rng.integers(len(choices))].format(**fields)


@cache
def templates(wording: Wording, split: str) -> tuple[str, ...]:
    """The split's share of all combinations: 70 % train, 15 % validation, 15 % test."""
    parts = itertools.product(wording.openers, wording.bodies, wording.endings)
    texts = sorted({" ".join(filter(None, part)) for part in parts}, key=_hash)
    first, second = int(0.7 * len(texts)), int(0.85 * len(texts))
    shares = (texts[:first], texts[first:second], texts[second:])
    return tuple(shares[SPLITS.index(split)])


def _hash(text: str) -> int:
    return zlib.crc32(("wording:" + text).encode())

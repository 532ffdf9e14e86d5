"""Checks of configuration values, with one wording."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def check_weights(name: str, weights: Iterable[float]) -> None:
    """Raises ValueError unless all weights are finite, none is negative and one is positive."""
    values = list(weights)
    if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
        raise ValueError(f"{name} are {values}: give finite numbers of at least 0, not all 0")


def check_within(
    config: object, *names: str, low: float, high: float = math.inf, above: bool = False
) -> None:
    """Raises ValueError unless these fields are finite numbers within [low, high].

    Args:
        config: whose fields they are.
        names: of the fields; those that are None are left out.
        low: smallest allowed value.
        high: largest allowed value.
        above: `low` itself is not allowed.
    """
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        is_low_enough = value > low if above else value >= low
        if not (math.isfinite(value) and is_low_enough and value <= high):
            least = f"more than {low:g}" if above else f"at least {low:g}"
            most = f" and at most {high:g}" if high < math.inf else ""
            raise ValueError(f"{name} is {value}: give a finite number of {least}{most}")


def check_prompt(prompt: str, name: str) -> None:
    """Raises ValueError unless this is a question: text that is not blank."""
    if not prompt.strip():
        raise ValueError(f"{name} is empty: ask a question")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not valid UTF-8: check the terminal's encoding") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to a misspelt one; empty if none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What an error says at its end of a misspelt name: the closest known one, if there is one."""
    close = nearest(name, known)
    return f"; did you mean {close}?" if close else ""

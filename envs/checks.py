"""Checks of configuration values, with one wording."""

from __future__ import annotations

import math


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

"""Settings of runs by their dotted names, and what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "not recorded"
"""In place of the value of a setting that a tree lacks."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = (
            flat(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {prefix + name: value}
        )
        found |= inner
    return found


def differing(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings whose values are not the same in all trees: one value per tree.

    A tree of an older version may lack a setting, whose value is then `ABSENT`.
    """
    settings = [flat(tree) for tree in trees]
    names = sorted({name for own in settings for name in own})
    values = {name: [own.get(name, ABSENT) for own in settings] for name in names}
    return {name: row for name, row in values.items() if any(v != row[0] for v in row)}

"""Reads the JSON files of original distributions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.spec import DataError


def read_json(folder: Path, names: Sequence[str]) -> Any:
    """The content of the first of these files that exists, also in a folder `annotations`.

    Raises:
        DataError: there is none, or it is not valid JSON.
    """
    places = [parent / name for name in names for parent in (folder, folder / "annotations")]
    for path in places:
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, OSError) as error:
                raise DataError(f"{path} is not valid JSON ({error}): download it again") from None
    raise DataError(f"{folder} has no {' or '.join(names)}: is it the original distribution?")


def records(content: Any, key: str, path: Path | str) -> list[dict[str, Any]]:
    """The list under a key, or the list itself where `key` is empty; raises DataError otherwise."""
    found = content if not key else content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DataError(
            f"{path} has no list of records{f' {key!r}' if key else ''}: is it the published file?"
        )
    return found

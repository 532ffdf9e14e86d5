"""Records of JSON files one after another, so that a file of a gigabyte needs a few megabytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from envs.spec import DataError

CHUNK = 2**20
"""Characters that are read at a time."""


def json_records(path: Path, key: str) -> Iterator[dict[str, Any]]:
    """The records of the list under a key of the file's object, or of the file's list.

    Args:
        path: a JSON file.
        key: key of the list; empty if the file itself is the list.

    Raises:
        DataError: the file is not valid JSON, or has no such list of records.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Reader(file).records(key)
    except _NoSuchListError:
        raise DataError(
            f"{path} has no list of records{f' {key!r}' if key else ''}: is it the published file?"
        ) from None
    except (ValueError, OSError) as error:
        wrong = getattr(error, "msg", error)  # its position would be that in the current part
        raise DataError(f"{path} is not valid JSON ({wrong}): download it again") from None


class _NoSuchListError(Exception):
    """The requested list is missing, or holds something other than records."""


class _Reader:
    """A position in a text that is read piece by piece."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text, self._at, self._ended = "", 0, False
        self._decode = json.JSONDecoder().raw_decode

    def records(self, key: str) -> Iterator[dict[str, Any]]:
        opening = self._peek()
        if opening == "[" and not key:
            yield from self._list()
        elif opening == "{" and key:
            yield from self._list_under(key)
        else:
            self._value()
            raise _NoSuchListError
        if self._peek():
            raise ValueError("it continues after its end")

    def _list_under(self, key: str) -> Iterator[dict[str, Any]]:
        self._at += 1
        found, char = False, self._peek()
        while char != "}":
            name = self._value()
            self._expect(":")
            if name == key and self._peek() == "[":
                found = True
                yield from self._list()
            else:
                self._value()
            char = self._expect(",}")
        if not found:
            raise _NoSuchListError

    def _list(self) -> Iterator[dict[str, Any]]:
        self._at += 1
        if self._peek() == "]":
            self._at += 1
            return
        char = ","
        while char == ",":
            record = self._value()
            if not isinstance(record, dict):
                raise _NoSuchListError
            yield record
            char = self._expect(",]")

    def _expect(self, chars: str) -> str:
        char = self._peek()
        if not char or char not in chars:
            raise ValueError(f"{' or '.join(chars)} expected, found {char or 'its end'}")
        self._at += 1
        return char

    def _peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        """The next value; more of the file is read until it is whole."""
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            if end < len(self._text) or not self._more():  # a number may continue
                self._at = end
                return value

    def _more(self) -> bool:
        """Reads on, twice as much as is pending; False at the end of the file."""
        pending = self._text[self._at :]
        chunk = "" if self._ended else self._file.read(max(CHUNK, len(pending)))
        self._ended = not chunk
        self._text, self._at = pending + chunk, 0
        return bool(chunk)

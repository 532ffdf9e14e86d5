"""An answer as it is decoded: pieces of text, then the whole answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TypeVar

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What the tokenizer shows for a character whose bytes are not all there yet."""

T = TypeVar("T")

OnToken = Callable[[int], object]
"""Called with each token of an answer, from the thread that decodes it."""


class TextPieces:
    """Turns tokens into pieces of text, which joined are the answer.

    Args:
        decode: the text of all tokens so far, without surrounding space.
        eos_token_id: the token that ends an answer and has no text.
    """

    def __init__(self, decode: Callable[[list[int]], str], eos_token_id: int) -> None:
        self._decode, self._eos = decode, eos_token_id
        self._token_ids: list[int] = []
        self._sent = ""

    def add(self, token_id: int) -> str:
        """The text that a token adds; empty while a character is incomplete."""
        if token_id == self._eos:
            return ""
        self._token_ids.append(token_id)
        text = self._decode(self._token_ids)
        return "" if text.endswith(REPLACEMENT) else self.rest(text)

    def rest(self, text: str) -> str:
        """What the whole text has beyond the pieces so far; they are a prefix of it."""
        if not text.startswith(self._sent):
            return ""
        piece, self._sent = text[len(self._sent) :], text
        return piece


def in_thread(run: Callable[[OnToken], T]) -> Iterator[int | T]:
    """Yields the tokens that `run` reports, as they come, then what it returns or raises.

    An iterator that is closed early waits for the end of `run`, because a device runs one question
    at a time.
    """
    reports: SimpleQueue[tuple[str, int | T | BaseException]] = SimpleQueue()

    def work() -> None:
        try:
            reports.put(("result", run(lambda token_id: reports.put(("token", token_id)))))
        except BaseException as error:
            reports.put(("error", error))

    thread = threading.Thread(target=work, name="episode", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = reports.get()
            if isinstance(value, BaseException):
                raise value
            yield value
            if kind == "result":
                return
    finally:
        thread.join()

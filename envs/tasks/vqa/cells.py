"""What the cells of a row must hold: anything other than the published form is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from envs.faults import code_line
from envs.spec import DataError


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Runs the block, and turns any error in the data into one DataError.

    Args:
        what: what is read, such as a sample; the message starts with it.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"{what}: not as published ({type(error).__name__}: {error}, {code_line(error)}): "
            "compare it with the published columns and types, or download it again"
        ) from None


def question_text(cell: Any) -> str:
    """The question; raises DataError if it is empty or not text."""
    if not isinstance(cell, str) or not cell.strip():
        raise DataError(f"its question is {_short(cell)}: correct the row or take it out")
    return cell


def texts(cell: Any, what: str) -> tuple[str, ...]:
    """A list of texts; raises DataError for anything else, also for a single text."""
    if not isinstance(cell, Sequence) or isinstance(cell, str | bytes):
        raise DataError(f"its {what} are {_short(cell)}, not a list of texts: correct the row")
    if not all(isinstance(text, str) for text in cell):
        raise DataError(f"its {what} {_short(cell)} are not all texts: correct the row")
    return tuple(cell)


def reference_answers(cell: Any) -> tuple[str, ...]:
    """The reference answers; raises DataError if all are empty or there are none."""
    answers = texts(cell or (), "answers")
    if not any(answer.strip() for answer in answers):
        raise DataError("it has no reference answers: is this a test split without answers?")
    return answers


def picture_id(cell: Any) -> str:
    """The id of a picture as text; raises DataError if it has none."""
    if cell is None or not str(cell).strip():
        raise DataError("its picture has no id, which tells pictures of different splits apart")
    return str(cell)


def _short(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."

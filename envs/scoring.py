"""The only place where a task's score enters: checked, with the task and the sample named."""

from __future__ import annotations

import math
from numbers import Real

from envs.faults import code_line
from envs.spec import DataError, Sample, Task


def score_of(tasks: Task, sample: Sample, answer: str) -> float:
    """A task's score of an answer.

    Raises:
        DataError: the task failed, or the score is not a finite number from 0 to 1.
    """
    try:
        score = tasks.score(sample, answer)
    except DataError:
        raise
    except Exception as error:  # the task may be a user's own
        raise DataError(
            f"task {sample.task} cannot score an answer to sample {sample.id}: "
            f"{type(error).__name__}: {error} ({code_line(error)}): correct the task or the data"
        ) from error
    if not isinstance(score, Real) or not math.isfinite(score) or not 0 <= score <= 1:
        shown = answer if len(answer) <= 40 else f"{answer[:40]}..."
        raise DataError(
            f"task {sample.task} gave the answer {shown!r} to sample {sample.id} the score "
            f"{score!r}: return a finite number from 0 to 1"
        )
    return float(score)

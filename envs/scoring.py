"""The only place where a task's score enters: checked, with the task and the sample named."""

from __future__ import annotations

import math
from numbers import Real

from envs.spec import DataError, Sample, Task


def score_of(tasks: Task, sample: Sample, answer: str) -> float:
    """A task's score of an answer.

    Raises:
        DataError: the score is not a finite number from 0 to 1.
    """
    score = tasks.score(sample, answer)
    if not isinstance(score, Real) or not math.isfinite(score) or not 0 <= score <= 1:
        shown = answer if len(answer) <= 40 else f"{answer[:40]}..."
        raise DataError(
            f"task {sample.task} gave the answer {shown!r} to sample {sample.id} the score "
            f"{score!r}: return a finite number from 0 to 1"
        )
    return float(score)

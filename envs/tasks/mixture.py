"""The default mixture: which tasks, with which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from envs.spec import Sample
from envs.tasks.chain import Chain
from envs.tasks.counting import Counting
from envs.tasks.digits import Digits
from envs.tasks.easy_vqa import EasyVqa
from envs.tasks.reading import Reading
from envs.tasks.recall import Recall
from envs.tasks.task import DataError, Task, check_split, sample_rng

WEIGHTS: Mapping[str, float] = {
    "easy_vqa": 0.15,
    "digits": 0.20,
    "reading": 0.10,
    "counting": 0.10,
    "recall": 0.20,
    "chain": 0.25,
}
"""Share of each task in the default mixture."""


def load_tasks(names: Sequence[str] = tuple(WEIGHTS)) -> dict[str, Task]:
    """The tasks of these names, in order; raises DataError for an unknown name or for none."""
    known: dict[str, type] = {
        cls.name: cls for cls in (EasyVqa, Digits, Reading, Counting, Recall, Chain)
    }
    if not names:
        raise DataError(f"no task given: name some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise DataError(f"unknown task {name!r}: use some of {', '.join(known)}")
    return {name: known[name]() for name in names}


class Mixture:
    """Tasks drawn by weight; itself a task.

    Args:
        tasks: by name.
        weights: by name, positive, not necessarily summing to one.

    Raises:
        DataError: if tasks and weights do not match or a weight is not positive.
    """

    name = "mixture"

    def __init__(
        self, tasks: Mapping[str, Task] | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        self.tasks = dict(load_tasks() if tasks is None else tasks)
        weights = WEIGHTS if weights is None else weights
        missing = sorted(set(self.tasks) - set(weights))
        if missing or not self.tasks:
            raise DataError(f"the mixture has no weight for {', '.join(missing) or 'any task'}")
        values = np.array([weights[name] for name in self.tasks], dtype=float)
        if not np.all(values > 0):
            raise DataError(f"mixture weights must be positive: {dict(weights)}")
        self.shares = dict(zip(self.tasks, values / values.sum(), strict=True))

    def sample(self, split: str, index: int) -> Sample:
        """The sample of (split, index); its id and task are those of the task it comes from."""
        rng = sample_rng(self.name, check_split(split), index)
        name = str(rng.choice(list(self.shares), p=list(self.shares.values())))
        return self.tasks[name].sample(split, index)

    def score(self, sample: Sample, answer: str) -> float:
        """Score by the sample's own task; raises DataError if the mixture does not hold it."""
        if sample.task not in self.tasks:
            raise DataError(f"sample {sample.id}: its task {sample.task!r} is not in the mixture")
        return self.tasks[sample.task].score(sample, answer)

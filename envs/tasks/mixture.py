"""Several tasks as one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs.faults import code_line
from envs.spec import DataError, Sample, Task
from envs.tasks.scene import check_split, sample_rng


class Mixture:
    """A task that draws from several tasks by weight.

    Args:
        tasks: by name.
        weights: positive weights by name, which need not sum to one; names without a task are
            ignored.

    Raises:
        DataError: a task has no weight, or a weight is not positive.
    """

    name = "mixture"

    def __init__(self, tasks: Mapping[str, Task], weights: Mapping[str, float]) -> None:
        self.tasks = dict(tasks)
        missing = sorted(set(self.tasks) - set(weights))
        if missing or not self.tasks:
            raise DataError(f"the mixture has no weight for {', '.join(missing) or 'any task'}")
        values = np.array([weights[name] for name in self.tasks], dtype=float)
        if not np.all((values > 0) & np.isfinite(values)):
            raise DataError(f"mixture weights must be positive and finite: {dict(weights)}")
        self.shares = dict(zip(self.tasks, values / values.sum(), strict=True))

    def sample(self, split: str, index: int) -> Sample:
        """The sample of (split, index); its id and task are those of the task it comes from."""
        rng = sample_rng(self.name, check_split(split), index)
        name = str(rng.choice(list(self.shares), p=list(self.shares.values())))
        return self._sample_of(name, split, index)

    def _sample_of(self, name: str, split: str, index: int) -> Sample:
        """A sample of a task; any other error in it becomes a DataError.

        The task may be a user's own, whose errors name neither the task nor the sample.
        """
        try:
            return self.tasks[name].sample(split, index)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"sample {name}/{split}/{index}: {type(error).__name__}: {error} "
                f"({code_line(error)}): correct the task or the data"
            ) from error

    def has_samples(self, split: str) -> bool:
        """Whether there are samples of a split."""
        del split
        return True

    def census(self) -> dict[str, dict[str, int]]:
        """Samples of each data set by split; empty without data sets."""
        return {}

    def descriptions(self) -> tuple[str, ...]:
        """Names of the tasks, with how they score if not by default."""
        return tuple(self.tasks)

    def score(self, sample: Sample, answer: str) -> float:
        """Score by the sample's own task; raises DataError if the mixture does not hold it."""
        if sample.task not in self.tasks:
            raise DataError(f"sample {sample.id}: its task {sample.task!r} is not in the mixture")
        return self.tasks[sample.task].score(sample, answer)

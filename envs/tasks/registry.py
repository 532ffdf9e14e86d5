"""The one place where names are mapped to tasks: add a data set here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from envs.spec import DataError, Task
from envs.tasks.chain import Chain
from envs.tasks.counting import Counting
from envs.tasks.digits import Digits
from envs.tasks.easy_vqa import EasyVqa
from envs.tasks.mixture import Mixture
from envs.tasks.reading import Reading
from envs.tasks.recall import Recall

TASKS = (EasyVqa, Digits, Reading, Counting, Recall, Chain)
"""All tasks that have a name."""

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
    known: dict[str, type] = {task.name: task for task in TASKS}
    if not names:
        raise DataError(f"no task given: name some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise DataError(f"unknown task {name!r}: use some of {', '.join(known)}")
    return {name: known[name]() for name in names}


def build_tasks(names: Sequence[str] = tuple(WEIGHTS)) -> Mixture:
    """The mixture of these tasks; raises DataError for an unknown name or for none."""
    return Mixture(load_tasks(names), WEIGHTS)

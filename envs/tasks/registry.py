"""The one place where names are mapped to tasks: add a data set here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from envs.checks import did_you_mean
from envs.spec import DataError, Task
from envs.tasks.chain import Chain
from envs.tasks.counting import Counting
from envs.tasks.data_mixture import DataMixture
from envs.tasks.digits import Digits
from envs.tasks.easy_vqa import EasyVqa
from envs.tasks.mixture import Mixture
from envs.tasks.reading import Reading
from envs.tasks.recall import Recall
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.coco_2014_vqa import Coco2014Vqa
from envs.tasks.vqa.coco_caption import CocoCaption
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.doc_qa import DocVqa
from envs.tasks.vqa.mmmu import Mmmu
from envs.tasks.vqa.okvqa import OkVqa
from envs.tasks.vqa.own import OwnDataSet
from envs.tasks.vqa.science_qa import ScienceQa
from envs.tasks.vqa.st_qa import StVqa
from envs.tasks.vqa.tally_qa import TallyQa
from envs.tasks.vqa.text_vqa import TextVqa
from envs.tasks.vqa.vqa_task import VqaTask

TASKS = (EasyVqa, Digits, Reading, Counting, Recall, Chain)
"""Tasks that have a name and nothing to configure."""

DATA_SETS = (
    Coco2014Vqa,
    CocoCaption,
    DocVqa,
    Mmmu,
    OkVqa,
    ScienceQa,
    StVqa,
    TallyQa,
    TextVqa,
)
"""Public data sets; `DataConfig` says where they are."""

WEIGHTS: Mapping[str, float] = {
    "easy_vqa": 0.15,
    "digits": 0.20,
    "reading": 0.10,
    "counting": 0.10,
    "recall": 0.20,
    "chain": 0.25,
}
"""Share of each task in the default mixture."""

DATA_WEIGHTS: Mapping[str, float] = {"text_vqa": 2.0, "coco_2014_vqa": 2.0}
"""Weights of data sets in a mixture; that of the others is 1."""


def check_names(names: Sequence[str], config: DataConfig | None = None) -> None:
    """Raises DataError for an unknown name, a name given twice, or none at all."""
    own = config.own if config else {}
    known = [*(task.name for task in (*TASKS, *DATA_SETS)), *own]
    if not names:
        raise DataError(f"no task given: name some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise DataError(
                f"unknown task {name!r}: use some of {', '.join(known)}{did_you_mean(name, known)}"
            )
        if names.count(name) > 1:
            raise DataError(f"task {name} is named twice: change its weight instead")


def check_config(config: DataConfig) -> None:
    """Raises DataError for a setting of a data set or a split that is unknown."""
    published, own = [data_set.name for data_set in DATA_SETS], list(config.own)
    taken = {task.name for task in (*TASKS, *DATA_SETS)}
    for name in own:
        if name in taken or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise DataError(
                f"worker.data.own names {name!r}: choose another name, of small letters, digits "
                "and _, that no task has"
            )
    for field, names, allowed in (
        ("sources", config.sources, published),
        ("configs", config.configs, published),
        ("images", config.images, [*published, *own]),
        ("splits", config.splits, [f"{name}/{split}" for name in published for split in SPLITS]),
        ("styles", config.styles, own),
        ("metrics", config.metrics, own),
    ):
        if unknown := sorted(set(names) - set(allowed)):
            raise DataError(
                f"worker.data.{field} names {', '.join(unknown)}: use some of "
                f"{', '.join(allowed) or 'your own data sets, which worker.data.own names'}"
                f"{did_you_mean(unknown[0], allowed)}"
            )


def load_tasks(
    names: Sequence[str] = tuple(WEIGHTS), config: DataConfig | None = None
) -> dict[str, Task]:
    """The tasks of these names, in order; raises DataError for an unknown name or setting."""
    settings = config or DataConfig()
    check_names(names, settings)
    check_config(settings)
    return {name: _task(name, settings) for name in names}


def _task(name: str, settings: DataConfig) -> Task:
    rendered = {task.name: task for task in TASKS}
    published = {task.name: task for task in DATA_SETS}
    if name in rendered:
        return rendered[name]()
    if name in published:
        return VqaTask(published[name](settings), settings)
    return VqaTask(OwnDataSet(name, settings), settings)


def build_tasks(
    names: Sequence[str] = tuple(WEIGHTS),
    weights: Mapping[str, float] | None = None,
    config: DataConfig | None = None,
) -> Mixture:
    """The mixture of these tasks.

    Args:
        names: names of the tasks.
        weights: weights that replace those of WEIGHTS and DATA_WEIGHTS.
        config: where data sets are; they are opened here.

    Raises:
        DataError: a name or a weight is unknown, or a data set cannot be opened.
    """
    tasks = load_tasks(names, config)
    if unknown := sorted(set(weights or {}) - set(names)):
        raise DataError(f"a weight for {', '.join(unknown)}, and the tasks are {', '.join(names)}")
    known = {**DATA_WEIGHTS, **WEIGHTS, **(weights or {})}
    settled = {name: known.get(name, 1.0) for name in names}
    if any(isinstance(task, VqaTask) for task in tasks.values()):
        return DataMixture(tasks, settled)
    return Mixture(tasks, settled)

"""Checks on one node that data sets are there, have the expected columns and can be decoded."""

from __future__ import annotations

from dataclasses import dataclass

from envs.spec import DataError
from envs.tasks.registry import load_tasks
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.data_set import VqaTask

TRIES = 5
"""Samples of a split that are tried before it counts as unusable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding:
    """What one node found of one data set.

    Attributes:
        name: the data set.
        sizes: number of samples by split, as text.
        sample: one decoded sample in words; empty if there is none.
        problem: what would stop a run; empty if nothing would.
    """

    name: str
    sizes: str = ""
    sample: str = ""
    problem: str = ""


def check_data(names: tuple[str, ...], config: DataConfig) -> list[DataFinding]:
    """Opens every data set and decodes a sample of each of its splits."""
    return [_check(name, config) for name in names]


def _check(name: str, config: DataConfig) -> DataFinding:
    try:
        task = load_tasks([name], config)[name]
        if not isinstance(task, VqaTask):
            sample = task.sample("train", 0)
            return DataFinding(name=name, sizes="rendered", sample=sample.prompt.strip())
        sizes = {split: task.num_samples(split) for split in SPLITS}
        text = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
        found = [_decoded(task, split) for split in SPLITS if sizes[split]]
        return DataFinding(name=name, sizes=text, sample=found[0] if found else "")
    except DataError as error:
        return DataFinding(name=name, problem=str(error))


def _decoded(task: VqaTask, split: str) -> str:
    """A sample of a split in words; raises DataError if none of the first ones is usable."""
    for index in range(TRIES):
        try:
            sample = task.sample(split, index)
        except DataError:
            if index == TRIES - 1:
                raise
            continue
        size = f"{sample.image.size[0]} x {sample.image.size[1]}" if sample.image else "no image"
        return f"{size}, {sample.prompt.strip().splitlines()[0]!r}"
    raise AssertionError

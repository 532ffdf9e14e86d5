"""Checks on one node that data sets are there, have the expected columns and can be decoded."""

from __future__ import annotations

from dataclasses import dataclass

from envs.spec import DataError
from envs.tasks.registry import load_tasks
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.data_set import VqaTask
from rollout.fleet import MAX_REPLACEMENTS


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
    """A sample of a split in words; raises DataError for as many unusable ones as end a run."""
    problem = ""
    for index in range(MAX_REPLACEMENTS):
        try:
            sample = task.sample(split, index)
        except DataError as error:
            problem = str(error)
            continue
        assert sample.image is not None, "every data set has pictures"
        width, height = sample.image.size
        return f"{width} x {height}, {sample.prompt.strip().splitlines()[0]!r}"
    raise DataError(f"{MAX_REPLACEMENTS} samples in a row are unusable, the last one: {problem}")

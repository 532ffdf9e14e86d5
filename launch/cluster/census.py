"""What a run and `doctor` say about a split for which no data set has samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

REMEDIES: Mapping[str, str] = {
    "train": (
        "add a table named train to your own data, or more pictures to the one that is divided, or "
        "a data set that has this split"
    ),
    "validation": (
        "add a table named validation to your own data, a larger {option}.validation-share, or a "
        "data set that has this split"
    ),
    "test": "add a table named test to your own data, or a data set that has this split",
}


def empty_split(
    census: Mapping[str, Mapping[str, int]], names: Iterable[str], split: str, option: str
) -> str:
    """The message about a split without samples; empty if there are some.

    Args:
        census: samples of each data set by split; tasks that are rendered are not in it.
        names: all tasks.
        split: one of the three splits.
        option: the option group of the data sets, such as `--worker.data`.
    """
    tasks = list(names)
    if len(census) < len(tasks) or any(sizes[split] for sizes in census.values()):
        return ""
    which = f"{tasks[0]} has no" if len(tasks) == 1 else f"none of {', '.join(tasks)} has a"
    return f"{which} sample in the {split} split: {REMEDIES[split].format(option=option)}"

"""Checks of `doctor` on one data set: rows, pictures and unused files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from envs.spec import DataError
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.finding import packed_in
from envs.tasks.vqa.own import OwnDataSet
from envs.tasks.vqa.own_tables import SPLIT_NAMES
from envs.tasks.vqa.vqa_task import VqaTask

MAX_PROBLEMS = 3
"""Problems of one kind that are printed; the others are counted."""

NUM_DECODED = 20
"""Samples of a data set whose pictures are decoded, the same number of each split."""


def own_problems(task: VqaTask) -> tuple[str, ...]:
    """Every row of a user's own files that could not be used, the first ones in words."""
    problems = []
    for split in SPLITS:
        part = task.splits[split]
        for number in part.numbers.tolist():
            place = f"{task.name}: {part.rows.place(number)}"
            try:
                entry = task.data_set.entry(part.rows.row(number), part.rows, number)
                if entry.picture is not None:
                    entry.picture.find(f"{place} ({entry.place})")
            except DataError as error:
                text = str(error)
                problems.append(text if place in text else f"{place}: {text}")
    return _first(problems, f"{task.name}: {{}} more rows cannot be used")


def picture_problems(task: VqaTask) -> tuple[str, ...]:
    """Existing pictures that cannot be decoded, among the first samples of each split."""
    problems = []
    present = [split for split in SPLITS if task.num_samples(split)]
    for split in present:
        for index in range(min(NUM_DECODED // len(present), task.num_samples(split))):
            if not _has_picture(task, split, index):
                continue  # another check reports it
            try:
                task.sample(split, index)
            except DataError as error:
                problems.append(str(error))
    return _first(problems, f"{task.name}: {{}} more of the decoded pictures are unusable")


def _has_picture(task: VqaTask, split: str, index: int) -> bool:
    """Whether a sample can be asked and its picture's file is there."""
    try:
        picture = task.entry(split, index).picture
        return picture is not None and picture.find("") is not None
    except DataError:
        return False


def _first(problems: list[str], others: str) -> tuple[str, ...]:
    """The first of some problems, and the number of the others."""
    if len(problems) <= MAX_PROBLEMS:
        return tuple(problems)
    return (*problems[:MAX_PROBLEMS], others.format(len(problems) - MAX_PROBLEMS))


def packed_pictures(task: VqaTask) -> str:
    """Archives among the folders of pictures, in words; empty if there are none."""
    folders = [part.rows.pictures for part in task.splits.values()]
    roots = {pictures.root for pictures in folders if pictures is not None}
    found = ", ".join(filter(None, (packed_in(root) for root in sorted(roots))))
    return f"{found} is still packed: unpack it there" if found else ""


def remarks(task: VqaTask) -> tuple[str, ...]:
    """What would not stop a run but may be a mistake in a user's own files."""
    if not isinstance(task.data_set, OwnDataSet):
        return ()
    tables = task.data_set.tables
    folder = Path(task.config.own[task.name]).expanduser()
    unused = ", ".join(str(path.relative_to(folder)) for path in tables.unused)
    names = ", ".join(SPLIT_NAMES)
    found = [f"not used: {unused} (names of tables are {names})"] if unused else []
    if "train" not in tables.by_split:
        used = ", ".join(path.name for path in tables.by_split.values())
        found.append(f"there is no table named train: nothing in {used} is used for training")
    return (*found, *_doubled_ids(task))


def _doubled_ids(task: VqaTask) -> tuple[str, ...]:
    """The ids that several rows of a table have, in one line."""
    counts: Counter[tuple[str, str]] = Counter()
    for part in {part.origin: part for part in task.splits.values()}.values():
        for row in part.rows.values(("id",)):
            if row.get("id") not in (None, ""):
                counts[part.origin, str(row["id"])] += 1
    doubled = [name for (_, name), count in counts.items() if count > 1]
    if not doubled:
        return ()
    shown = ", ".join(doubled[:MAX_PROBLEMS])
    return (f"several rows have the same id, for {len(doubled)} ids: {shown}",)

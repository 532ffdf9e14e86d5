"""What `doctor` says of data sets, found on one node: sources, splits, overlap, one question."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from envs.pixels import to_rgb
from envs.spec import DataError, Sample, Task
from envs.tasks.data_mixture import DataMixture
from envs.tasks.registry import load_tasks
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.opening import source_of
from envs.tasks.vqa.own import OwnDataSet
from envs.tasks.vqa.vqa_task import VqaTask
from rollout.fleet import MAX_REPLACEMENTS

SHOWN_WIDTH = 480
"""Width in pixels to which pictures of the page are reduced."""

MAX_PROBLEMS = 3
"""Problems of a user's own rows that are printed; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question as the model will read it.

    Attributes:
        sample_id: its id.
        prompt: the prompt, without the role format.
        answers: its reference answers.
        answer: the first of them.
        score: what that one scores.
        size: width and height of the picture in pixels; zeros without one.
        picture: the picture as a data URL, if it was asked for.
    """

    sample_id: str
    prompt: str
    answers: tuple[str, ...]
    answer: str
    score: float
    size: tuple[int, int] = (0, 0)
    picture: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding:
    """What one node found of one data set.

    Attributes:
        name: the data set.
        source: where it is and how it is laid out.
        origins: where the rows of each split come from.
        sizes: number of samples by split, as text.
        dropped: samples dropped by the data set that holds their picture out.
        questions: some of them, of the training split first.
        problem: what would stop a run; empty if nothing would.
        notes: what would not.
    """

    name: str
    source: str = ""
    origins: tuple[str, ...] = ()
    sizes: str = ""
    dropped: tuple[tuple[str, int], ...] = ()
    questions: tuple[Question, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()


def check_data(names: Sequence[str], config: DataConfig, show: int = 0) -> list[DataFinding]:
    """Opens every data set, alone and together, and decodes a sample of each of its splits.

    Args:
        names: tasks.
        config: where data sets are.
        show: number of questions per task that come with their pictures.
    """
    tasks: dict[str, Task] = {}
    findings = []
    for name in names:
        try:
            task = load_tasks([name], config)[name]
            findings.append(_check(task, name, config, show))
            tasks[name] = task
        except DataError as error:
            findings.append(DataFinding(name=name, problem=str(error)))
    return _after_overlap(findings, tasks)


def _check(task: Task, name: str, config: DataConfig, show: int) -> DataFinding:
    if not isinstance(task, VqaTask):
        questions = [_question(task, task.sample("train", i), show) for i in range(max(show, 1))]
        return DataFinding(name=name, source="rendered", questions=tuple(questions))
    source = source_of(task.data_set, config)
    layout = {"hub": "the hub", "parquet": "parquet files", "original": "the original files"}
    if name in config.own:
        layout["original"] = "your own files"
    present = [split for split in SPLITS if task.num_samples(split)]
    found = DataFinding(
        name=name,
        source=f"{source} ({layout[source.kind]})",
        origins=_origins(task),
        sizes=_sizes(task),
    )
    if isinstance(task.data_set, OwnDataSet) and (problems := _own_problems(task)):
        return replace(found, problem=problems[0], notes=problems[1:])
    try:
        shown = [q for split in present for q in _questions(task, split, max(show, 1), show)]
    except DataError as error:
        return replace(found, problem=str(error))
    return replace(found, questions=tuple(shown[: max(show, 1)]))


def _origins(task: VqaTask) -> tuple[str, ...]:
    """Where the splits come from, those of the same files in one line, and the pictures."""
    by_origin: dict[str, list[str]] = {}
    for split in SPLITS:
        by_origin.setdefault(task.splits[split].origin or "none", []).append(split)
    origins = [f"{', '.join(splits)}: {origin}" for origin, splits in by_origin.items()]
    known = ", ".join(f"{count:,} by {kind}" for kind, count in _identified(task).items() if count)
    return (*origins, f"pictures: {_place_of_pictures(task)}; told apart: {known}")


def _identified(task: VqaTask) -> dict[str, int]:
    """How many pictures are known by what: only the first two are compared with other sets."""
    keys = frozenset().union(*(task.keys(split) for split in SPLITS))
    coco, genome = (sum(key.startswith(kind) for key in keys) for kind in ("coco:", "vg:"))
    return {
        "number of COCO": coco,
        "number of Visual Genome": genome,
        "name or pixels within the set": len(keys) - coco - genome,
    }


def _place_of_pictures(task: VqaTask) -> str:
    """The folder of the first picture that is found, or that they are in the table."""
    for split in SPLITS:
        for index in range(min(task.num_samples(split), MAX_REPLACEMENTS)):
            try:
                picture = task.entry(split, index).picture
                place = picture.find("") if picture else None
            except DataError:
                continue
            if isinstance(place, Path):
                return str(place.parent)
            if place is not None:
                return "in the table"
    return "none was found"


def _after_overlap(findings: list[DataFinding], tasks: dict[str, Task]) -> list[DataFinding]:
    """The findings with what is left of each data set in the mixture of all of them."""
    if not any(isinstance(task, VqaTask) for task in tasks.values()):
        return findings
    DataMixture(tasks, dict.fromkeys(tasks, 1.0))
    mixed = []
    for found in findings:
        task = tasks.get(found.name)
        if isinstance(task, VqaTask):
            dropped = tuple(sorted(task.dropped_for.items()))
            found = replace(found, sizes=_sizes(task), dropped=dropped)
        mixed.append(found)
    return mixed


def _sizes(task: VqaTask) -> str:
    return ", ".join(f"{task.num_samples(split):,} {split}" for split in SPLITS)


def _questions(task: VqaTask, split: str, count: int, show: int) -> Iterator[Question]:
    """Questions of a split; raises DataError for as many unusable ones as end a run."""
    found, unusable, problem = 0, 0, ""
    for index in range(task.num_samples(split)):
        try:
            sample = task.sample(split, index)
        except DataError as error:
            unusable, problem = unusable + 1, str(error)
            if unusable == MAX_REPLACEMENTS:
                break
            continue
        yield _question(task, sample, show)
        found += 1
        if found == count:
            return
    if not found:
        raise DataError(f"{unusable} samples in a row are unusable, the last one: {problem}")


def _question(task: Task, sample: Sample, show: int) -> Question:
    question = Question(
        sample_id=sample.id,
        prompt=sample.prompt,
        answers=sample.answers,
        answer=sample.answers[0],
        score=task.score(sample, sample.answers[0]),
    )
    if sample.image is None:
        return question
    question = replace(question, size=sample.image.size)
    return replace(question, picture=_data_url(sample.image)) if show else question


def _data_url(image: Image.Image) -> str:
    """The picture as the model sees it, reduced, as the text of a web page."""
    seen = Image.fromarray(to_rgb(image))
    seen.thumbnail((SHOWN_WIDTH, SHOWN_WIDTH))
    buffer = io.BytesIO()
    seen.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _own_problems(task: VqaTask) -> tuple[str, ...]:
    """Every row of a user's own files that could not be used, the first ones in words."""
    problems, num_wrong = [], 0
    for split in SPLITS:
        part = task.splits[split]
        for number in part.numbers.tolist():
            place = f"{task.name}: {part.rows.place(number)}"
            try:
                entry = task.data_set.entry(part.rows.row(number), part.rows, number)
                if entry.picture is not None:
                    entry.picture.find(place)
            except DataError as error:
                num_wrong += 1
                if len(problems) < MAX_PROBLEMS:
                    text = str(error)
                    problems.append(text if place in text else f"{place}: {text}")
    if num_wrong > len(problems):
        problems.append(f"{task.name}: {num_wrong - len(problems)} more rows cannot be used")
    return tuple(problems)

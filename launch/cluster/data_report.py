"""What `doctor` says about data sets, found on one node: sources, splits, overlap, one question."""

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
from envs.tasks.vqa.own import FILE, OwnDataSet
from envs.tasks.vqa.vqa_task import VqaTask
from launch.cluster.census import empty_split
from launch.cluster.data_checks import own_problems, packed_pictures, picture_problems, remarks
from rollout.fleet import MAX_REPLACEMENTS

SHOWN_WIDTH = 480
"""Width in pixels to which pictures of the page are reduced."""


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
        picture: the picture as a data URL, if requested.
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
        dropped: samples left out, by the data set that holds their picture out.
        questions: some of them, of the training split first.
        problem: what would stop a run; empty if nothing would.
        notes: other problems, which would not.
        remarks: what may be a mistake or intended.
    """

    name: str
    source: str = ""
    origins: tuple[str, ...] = ()
    sizes: str = ""
    dropped: tuple[tuple[str, int], ...] = ()
    questions: tuple[Question, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def check_data(names: Sequence[str], config: DataConfig, show: int = 0) -> list[DataFinding]:
    """Opens every data set, alone and together, and decodes samples of each of its splits.

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
            findings.append(_opened(task, name, config))
            tasks[name] = task
        except DataError as error:
            findings.append(DataFinding(name=name, problem=str(error)))
    mixture = DataMixture(tasks, dict.fromkeys(tasks, 1.0)) if tasks else None
    findings = [_check(f, tasks[f.name], show) if f.name in tasks else f for f in findings]
    if mixture is not None and len(tasks) == len(names):
        findings = _with_empty_splits(findings, mixture)
    return [_with_own_options(found) for found in findings]


def _opened(task: Task, name: str, config: DataConfig) -> DataFinding:
    """Where a data set comes from, and what is wrong with rows of the user's own; opens it."""
    if not isinstance(task, VqaTask):
        return DataFinding(name=name, source="rendered")
    source = source_of(task.data_set, config)
    layout = {"hub": "the hub", "parquet": "parquet files", "original": "the original files"}
    if name in config.own:
        layout["original"] = "your own files"
    source = f"{source} ({layout[source.kind]})"
    is_own = isinstance(task.data_set, OwnDataSet)
    found = DataFinding(name=name, source=source, origins=_origins(task), remarks=remarks(task))
    return _with_problems(found, own_problems(task) if is_own else ())


def _with_problems(found: DataFinding, problems: Sequence[str]) -> DataFinding:
    return replace(found, problem="".join(problems[:1]), notes=tuple(problems[1:]))


def _check(found: DataFinding, task: Task, show: int) -> DataFinding:
    """The finding with what is left of a data set next to the others, and what is wrong with it."""
    if not isinstance(task, VqaTask):
        questions = [_question(task, task.sample("train", i), show) for i in range(max(show, 1))]
        return replace(found, questions=tuple(questions))
    dropped = tuple(sorted(task.dropped_for.items()))
    found = replace(found, sizes=_sizes(task), dropped=dropped)
    problems = tuple(filter(None, (found.problem, *found.notes)))
    if isinstance(task.data_set, OwnDataSet):
        problems += picture_problems(task)
    else:  # a run replaces and counts them
        found = replace(found, remarks=(*found.remarks, *picture_problems(task)))
    try:
        present = [split for split in SPLITS if task.num_samples(split)]
        shown = [q for split in present for q in _questions(task, split, max(show, 1), show)]
        found = replace(found, questions=tuple(shown[: max(show, 1)]))
    except DataError as error:
        problems = problems or (str(error),)
    if any("image is missing" in text for text in problems) and (packed := packed_pictures(task)):
        problems = (f"{problems[0]}; {packed}", *problems[1:])
    return _with_problems(found, problems)


def _with_empty_splits(findings: list[DataFinding], mixture: DataMixture) -> list[DataFinding]:
    """The findings, the first one with the splits that a run needs and no data set has."""
    census = mixture.census()
    empty = [empty_split(census, mixture.tasks, split, "--data") for split in SPLITS]
    if not any(empty):
        return findings
    first, *others = findings
    problems = list(filter(None, (first.problem, *first.notes, *empty)))
    return [_with_problems(first, problems), *others]


def _with_own_options(found: DataFinding) -> DataFinding:
    """The finding with the names that `doctor` gives to options of a run."""
    problem, *others = (
        text.replace("worker.data.", "data.") for text in (found.problem, *found.notes)
    )
    noted = tuple(text.replace("worker.data.", "data.") for text in found.remarks)
    return replace(found, problem=problem, notes=tuple(others), remarks=noted)


def _origins(task: VqaTask) -> tuple[str, ...]:
    """Where the splits come from, those of the same files in one line, and the pictures."""
    by_origin: dict[str, list[str]] = {}
    for split in SPLITS:
        by_origin.setdefault(task.splits[split].origin or "none", []).append(split)
    origins = [f"{', '.join(splits)}: {origin}" for origin, splits in by_origin.items()]
    known = ", ".join(f"{count:,} {kind}" for kind, count in _identified(task).items() if count)
    return (*origins, f"pictures: {_place_of_pictures(task)}; different ones: {known}")


def _identified(task: VqaTask) -> dict[str, int]:
    """How pictures are identified, how many by what, and which data sets they are compared with."""
    keys = frozenset().union(*(task.keys(split) for split in SPLITS))
    kinds = ("coco:", "vg:", FILE)
    coco, genome, files = (sum(key.startswith(kind) for key in keys) for kind in kinds)
    return {
        "known by their number of COCO": coco,
        "known by their number of Visual Genome": genome,
        "known by their file (compared with your other own data alone)": files,
        "known by their name or pixels (not compared with other data sets)": len(keys)
        - (coco + genome + files),
    }


def _place_of_pictures(task: VqaTask) -> str:
    """The folder of the first picture that is found, or a note that they are in the table."""
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

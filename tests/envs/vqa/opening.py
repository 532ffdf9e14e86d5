"""Opens the data sets of the fixtures in each of their published forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envs.spec import Sample
from envs.tasks.data_mixture import DataMixture
from envs.tasks.registry import build_tasks, load_tasks
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.data_set import Entry
from envs.tasks.vqa.vqa_task import VqaTask
from tests.envs.vqa.fixtures import ORIGINAL, PARQUET, write_original, write_parquet

FORMS = (
    *(f"{name}:{variant or 'parquet'}" for name, variant in PARQUET),
    *(f"{name}:original" for name in ORIGINAL),
)
"""NAME:FORM, where a form is `parquet`, a variant of it, or `original`."""

HELD_OUT = 3
"""ST-VQA questions of the test split."""

SETTINGS: dict[str, dict[str, Any]] = {
    "doc_qa:parquet": {"splits": {"doc_qa/train": "train"}},
    "doc_qa:huggingface_m4": {"splits": {"doc_qa/train": "train"}},
    "okvqa:script": {"splits": {"okvqa/train": "train", "okvqa/test": "validation"}},
    "science_qa_img:lmms": {"configs": {"science_qa_img": "ScienceQA-IMG"}},
}
"""What a form needs beside its folder; with it, all its splits with answers are used."""


def write_all(root: Path) -> Path:
    """Writes every form to ROOT/NAME:FORM."""
    for name, variant in PARQUET:
        write_parquet(name, root / f"{name}:{variant or 'parquet'}", variant=variant)
    for name in ORIGINAL:
        write_original(name, root / f"{name}:original")
    return root


def settings(root: Path, *forms: str, **changes: Any) -> DataConfig:
    """The configuration that opens these forms; validation parts of train splits are empty."""
    merged: dict[str, Any] = {"validation_share": 0.0, "held_out_st_qa": HELD_OUT}
    merged["sources"] = {form.partition(":")[0]: str(root / form) for form in forms}
    for form in forms:
        for key, value in SETTINGS.get(form, {}).items():
            merged[key] = {**merged.get(key, {}), **value}
    return DataConfig(**{**merged, **changes})


def opened(root: Path, form: str, **changes: Any) -> VqaTask:
    """One data set by itself."""
    name = form.partition(":")[0]
    task = load_tasks([name], settings(root, form, **changes))[name]
    assert isinstance(task, VqaTask)
    return task


def mixed(root: Path, *forms: str, also: tuple[str, ...] = (), **changes: Any) -> DataMixture:
    """Several data sets, and embedded tasks beside them."""
    names = [form.partition(":")[0] for form in forms]
    mixture = build_tasks([*names, *also], config=settings(root, *forms, **changes))
    assert isinstance(mixture, DataMixture)
    return mixture


def entries(task: VqaTask) -> dict[str, tuple[str, int, Entry]]:
    """(split, index, question) of all questions that have answers, by question id."""
    found = {}
    for split in SPLITS:
        for index in range(task.num_samples(split)):
            try:
                entry = task.entry(split, index)
            except ValueError:
                continue
            found[entry.question_id] = (split, index, entry)
    return found


def sample_of(task: VqaTask, question_id: str) -> Sample:
    """The sample of a question, wherever it stands; raises KeyError if it has no answers."""
    split, index, _ = entries(task)[question_id]
    return task.sample(split, index)


def question_ids(task: VqaTask, split: str) -> set[str]:
    """The question ids of a split; all its questions must have answers."""
    return {task.entry(split, i).question_id for i in range(task.num_samples(split))}

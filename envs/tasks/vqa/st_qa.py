"""ST-VQA, task 3: questions about scene text in pictures of seven sources.

The original, rrc.cvc.uab.es, challenge 11: train_task_3.json and folders of pictures by source,
among them `VisualGenome/` (also written visual_genome) and `coco-text/`; schema seen in
allenai/molmo, olmo/data/academic_datasets.py, and google-research/big_vision,
datasets/stvqa/stvqa.py. There is no validation split with answers: the published code of Molmo
holds out 1,024 questions of train_task_3.json by a fixed shuffle, and so does this. The hub's
columns: vikhyatk/st-vqa has `image` and `qas`, a list of {question, answers}, one row per picture
(published records); a flat form with `question_id` is what lmms-eval reads of
lmms-lab-encoder/ST-VQA, which has no answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from envs.spec import DataError, Sample
from envs.tasks.vqa.cells import question_text, reference_answers
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_stream import json_records
from envs.tasks.vqa.picture import Picture, picture_key, pixel_key
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Row, Rows, Unfolded
from envs.tasks.vqa.text_match import molmo_anls

SHUFFLE_SEED = 63069
"""Seed of the published split (allenai/molmo, olmo/data/academic_datasets.py)."""


class StVqa(DataSet):
    """Held out by question; a picture of a held-out question is then dropped from training."""

    name = "st_qa"
    hub_ids = ("vikhyatk/st-vqa",)
    on_hub = Published(train="train", test="train")
    in_original = Published(train="train", test="held out")
    columns = (("question",), ("answers",), ("image",), ("question_id",))
    key_columns = ("file_path", "image", "question_id")

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """One file for both parts."""
        if split not in ("train", "held out"):
            raise DataError("use 'train' or 'held out', the two parts of train_task_3.json")
        return (("train_task_3.json",),)

    def settings(self) -> tuple[Any, ...]:
        """How many questions are held out."""
        return (self.config.held_out_st_qa,)

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """The `train` or the `held out` part of the file."""
        rows = sorted(json_records(paths[0], "data"), key=lambda row: int(row["question_id"]))
        count = self.config.held_out_st_qa
        if len(rows) <= count:
            raise DataError(
                f"train_task_3.json has {len(rows)} questions, and {count} are to be held out: "
                "lower worker.data.held-out-st-qa"
            )
        order: Any = list(range(len(rows)))
        np.random.RandomState(SHUFFLE_SEED).shuffle(order)
        part = order[:count] if split == "held out" else order[count:]
        for i in part:
            yield {**rows[i], "image": {"path": str(PurePosixPath(rows[i]["file_path"]))}}

    def one_row_per_question(self, rows: Rows) -> Rows:
        """The questions of `qas`, where a row is a picture."""
        return Unfolded(rows, "qas") if "qas" in rows.columns else rows

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """By file name, which names a COCO or Visual Genome picture; by pixels without one."""
        name = row.get("file_path") or (row["image"] or {}).get("path") or ""
        key = picture_key(name, self.name)
        if row.get("file_path") or not key.startswith(f"{self.name}:"):
            return key
        picture = Picture.of_cell(row["image"], rows.pictures)
        place = f"{rows.split}/{number}"
        return pixel_key(picture, self.name, place) if picture else f"{self.name}:{place}"

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `st_qa`."""
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.pictures),
            prompt=styled("st_qa", question_text(row["question"])),
            answers=reference_answers(row.get("answers")),
            metadata={"kind": str(row.get("dataset") or "")},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """ANLS."""
        return molmo_anls(answer, sample.answers)

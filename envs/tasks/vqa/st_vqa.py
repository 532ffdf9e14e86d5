"""ST-VQA, task 3: questions about scene text in pictures of seven sources.

Source: rrc.cvc.uab.es, challenge 11. There is no validation split with answers; the published code
of Molmo holds out 1,024 questions of train_task_3.json by a fixed shuffle, and so does this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from envs.spec import DataError, Sample
from envs.tasks.vqa.cells import question_text, reference_answers
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_files import read_json, records
from envs.tasks.vqa.picture import Picture, picture_key, pixel_key
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Records, Row, Rows
from envs.tasks.vqa.text_match import molmo_anls

SHUFFLE_SEED = 63069
"""Seed of the published split (allenai/molmo, olmo/data/academic_datasets.py)."""

IMAGE_FOLDERS = ("scene-text", "train_images", "train_imgs", "train", "")


class StVqa(DataSet):
    """Held out by question; a picture of a held-out question is then dropped from training."""

    name = "st_qa"
    hub_id = "vikhyatk/st-vqa"
    on_hub = Published(train="train", test="train")
    in_original = Published(train="train", test="held out")
    columns = (("question",), ("answers",), ("image",), ("question_id",))
    key_columns = ("file_path", "image", "question_id")

    def original(self, folder: Path, images: Path, split: str) -> Records:
        """The `train` or the `held out` part of train_task_3.json."""
        if split not in ("train", "held out"):
            raise DataError("use 'train' or 'held out', the two parts of train_task_3.json")
        rows = records(read_json(folder, ["train_task_3.json"]), "data", "train_task_3.json")
        rows = sorted(rows, key=lambda row: int(row["question_id"]))
        count = self.config.held_out_st_qa
        if len(rows) <= count:
            raise DataError(
                f"train_task_3.json has {len(rows)} questions, and {count} are to be held out: "
                "lower worker.data.held-out-st-qa"
            )
        order: Any = list(range(len(rows)))
        np.random.RandomState(SHUFFLE_SEED).shuffle(order)
        part = order[:count] if split == "held out" else order[count:]
        return Records(records=[{**rows[i], "image": _picture(images, rows[i])} for i in part])

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """By file name, which names a COCO or Visual Genome picture; by pixels without one."""
        if row.get("file_path"):
            return picture_key(row["file_path"], self.name)
        picture = Picture.of_cell(row["image"], rows.folder)
        place = f"row {number}"
        return pixel_key(picture, self.name, place) if picture else f"{self.name}:{place}"

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `st_qa`."""
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.folder),
            prompt=styled("st_qa", question_text(row["question"])),
            answers=reference_answers(row.get("answers")),
            metadata={"kind": str(row.get("dataset") or "")},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """ANLS."""
        return molmo_anls(answer, sample.answers)


def _picture(images: Path, row: Row) -> Picture:
    paths = tuple(images / folder / row["file_path"] for folder in IMAGE_FOLDERS)
    return Picture(paths=paths)

"""VQA v2 on COCO 2014: open questions with ten answers each.

Source: visualqa.org (JSON and COCO images); GT-Vision-Lab/VQA README.md for the schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envs.spec import DataError, Sample
from envs.tasks.vqa.cells import question_text, reference_answers
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_files import read_json, records
from envs.tasks.vqa.picture import Picture, coco_paths
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Records, Row, Rows
from envs.tasks.vqa.soft_accuracy import molmo_soft_accuracy, official_soft_accuracy

SOFT_SCORES = {"molmo": molmo_soft_accuracy, "official": official_soft_accuracy}
"""The definitions of VQA soft accuracy by their names in `DataConfig`."""


class Coco2014Vqa(DataSet):
    """Question ids are `image_id` with three more digits."""

    name = "coco_2014_vqa"
    hub_id = "lmms-lab-encoder/VQAv2"
    on_hub = Published(test="validation", train="validation")
    in_original = Published(train="train", test="val")
    columns = (("question",), ("answers",), ("image",), ("question_id",), ("image_id",))
    key_columns = ("image_id",)

    def original(self, folder: Path, images: Path, split: str) -> Records:
        """Joins questions and annotations by `question_id`."""
        questions = read_json(folder, [f"v2_OpenEnded_mscoco_{split}2014_questions.json"])
        annotations = read_json(folder, [f"v2_mscoco_{split}2014_annotations.json"])
        return joined(questions, annotations, images, split)

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The COCO picture."""
        return f"coco:{int(row['image_id'])}"

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `vqa2`; `answer_confidence` is ignored, as by the published code."""
        answers = [answer["answer"] for answer in row["answers"] or ()]
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.folder),
            prompt=styled("vqa2", question_text(row["question"])),
            answers=reference_answers(answers),
            metadata={"kind": str(row.get("answer_type") or "")},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """VQA soft accuracy."""
        return SOFT_SCORES[self.config.vqa_score](answer, sample.answers)


def joined(questions: Any, annotations: Any, images: Path, split: str) -> Records:
    """Rows of the two files of a VQA split; their orders need not agree.

    Raises:
        DataError: a question has no annotation, or a file is not as published.
    """
    by_id = {row["question_id"]: row for row in records(annotations, "annotations", "annotations")}
    rows = []
    for question in records(questions, "questions", "questions"):
        found = by_id.get(question["question_id"])
        if found is None:
            raise DataError(
                f"question {question['question_id']} has no annotation: do both files belong to "
                f"the {split} split?"
            )
        paths = coco_paths(images, int(question["image_id"]), (f"{split}2014",))
        image = Picture(paths=paths)
        rows.append({**found, "question": question["question"], "image": image})
    return Records(records=rows)

"""VQA v2 on COCO 2014: open questions with ten answers each.

The original, visualqa.org: two JSON files per split. Schema seen in GT-Vision-Lab/VQA, README.md,
and allenai/molmo, olmo/hf_datasets/vqa_v2.py. The hub's columns: seen on the viewer's page of
lmms-lab/VQAv2, which was renamed lmms-lab-encoder/VQAv2. Layouts: the official toolkit's
`Questions/`, `Annotations/`, `Images/mscoco/SPLIT2014/` (the same README), or everything in one
folder; pictures may be those of COCO 2017 (the names of cocodataset.org).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from envs.spec import DataError, Sample
from envs.tasks.vqa.cells import question_text, reference_answers
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_stream import json_records
from envs.tasks.vqa.picture import Picture, coco_key, coco_name
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Row, Rows
from envs.tasks.vqa.soft_accuracy import (
    molmo_soft_accuracy,
    text_vqa_soft_accuracy,
    vqa_v2_soft_accuracy,
)

SOFT_SCORES = {
    "molmo": molmo_soft_accuracy,
    "vqa_v2": vqa_v2_soft_accuracy,
    "text_vqa": text_vqa_soft_accuracy,
}
"""The definitions of VQA soft accuracy by their names in `DataConfig`."""


class Coco2014Vqa(DataSet):
    """Question ids are `image_id` with three more digits."""

    name = "coco_2014_vqa"
    hub_ids = ("lmms-lab-encoder/VQAv2", "lmms-lab/VQAv2")
    scored_by = ("vqa_score",)
    on_hub = Published(test="validation", train="validation")
    in_original = Published(train="train", test="val")
    columns = (("question",), ("answers",), ("image",), ("question_id",), ("image_id",))
    key_columns = ("image_id",)

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """Questions and annotations."""
        return (
            (f"v2_OpenEnded_mscoco_{split}2014_questions.json",),
            (f"v2_mscoco_{split}2014_annotations.json",),
        )

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """Joins questions and annotations by `question_id`."""
        return joined(paths, split, ("answers", "answer_type"))

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The COCO picture."""
        return coco_key(row["image_id"])

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `vqa2`; `answer_confidence` is ignored, as by the published code."""
        answers = row["answers"] or ()
        if isinstance(answers, list):
            answers = [a["answer"] if isinstance(a, dict) else a for a in answers]
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.pictures),
            prompt=styled("vqa2", question_text(row["question"])),
            answers=reference_answers(answers),
            metadata={"kind": str(row.get("answer_type") or "")},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """VQA soft accuracy."""
        return SOFT_SCORES[self.config.vqa_score](answer, sample.answers)


def joined(paths: Sequence[Path], split: str, keys: Sequence[str]) -> Iterator[Row]:
    """Rows of the two files of a VQA split, in the order of the questions.

    Args:
        paths: questions and annotations, whose orders need not agree.
        split: published name of the split.
        keys: what is kept of an annotation, if present.

    Raises:
        DataError: a question has no annotation, or a file is not as published.
    """
    questions, annotations = paths
    by_id = {  # as texts: Python's objects of 444,000 annotations would take 3 GB
        row["question_id"]: json.dumps({key: row[key] for key in keys if key in row})
        for row in json_records(annotations, "annotations")
    }
    for question in json_records(questions, "questions"):
        found = by_id.get(question["question_id"])
        if found is None:
            raise DataError(
                f"question {question['question_id']} of {questions.name} has no annotation in "
                f"{annotations.name}: do both files belong to the {split} split?"
            )
        image_id = question["image_id"]
        row = {
            "question_id": question["question_id"],
            "question": question["question"],
            "image_id": image_id,
            "image": {"path": coco_name(int(image_id), f"{split}2014")},
        }
        yield {**row, **json.loads(found)}

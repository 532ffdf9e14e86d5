"""OK-VQA: questions about COCO pictures that need outside knowledge, with ten answers each.

The original, okvqa.allenai.org: two JSON files per split with the names of VQA v1, told apart by
`raw_answer`; schema seen in google-research/big_vision, datasets/okvqa/okvqa.py. The hub's
columns: seen on the viewer's page of lmms-lab/OK-VQA, renamed lmms-lab-encoder/OK-VQA (whether its
`answers` are raw was not seen), and those of the former loading script on that of
thomasgauthier/okvqa. Layouts as of VQA v2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from envs.spec import DataError, Sample
from envs.tasks.vqa.cells import question_text, reference_answers
from envs.tasks.vqa.coco_2014_vqa import SOFT_SCORES, joined
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.picture import Picture, coco_key
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Row, Rows


class OkVqa(DataSet):
    """Scored against `raw_answer` where there is one; `answer` is a reduced form."""

    name = "okvqa"
    hub_ids = ("lmms-lab-encoder/OK-VQA", "lmms-lab/OK-VQA")
    scored_by = ("vqa_score",)
    on_hub = Published(train="val2014", test="val2014")
    in_original = Published(train="train", test="val")
    columns = (("question",), ("answers_original", "answers"), ("image",), ("question_id",))
    key_columns = ("image_id", "id_image", "question_id")

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """Questions and annotations."""
        return (
            (f"OpenEnded_mscoco_{split}2014_questions.json",),
            (f"mscoco_{split}2014_annotations.json",),
        )

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """Joins questions and annotations; raises DataError for the files of VQA v1."""
        for number, row in enumerate(joined(paths, split, ("answers", "question_type"))):
            if not number and row["answers"] and "raw_answer" not in row["answers"][0]:
                raise DataError(
                    f"the answers in {paths[1]} have no raw_answer: these are the files of VQA v1, "
                    "which have the same names as those of OK-VQA"
                )
            yield row

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The COCO picture; without an image id it is the question's id without its last digit."""
        image_id = row.get("image_id", row.get("id_image"))
        return coco_key(int(row["question_id"]) // 10 if image_id is None else image_id)

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `okvqa`."""
        answers = row.get("answers_original") or row["answers"]
        if isinstance(answers, list):
            answers = [_raw(answer) for answer in answers]
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.pictures),
            prompt=styled("okvqa", question_text(row["question"])),
            answers=reference_answers(answers),
            metadata={"kind": str(row.get("question_type") or "")},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """VQA soft accuracy."""
        return SOFT_SCORES[self.config.vqa_score](answer, sample.answers)


def _raw(answer: Any) -> Any:
    return answer.get("raw_answer") or answer["answer"] if isinstance(answer, dict) else answer

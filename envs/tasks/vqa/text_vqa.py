"""TextVQA: questions about text in OpenImages pictures, with ten answers each.

Source: textvqa.org; facebook/textvqa for the schema.
"""

from __future__ import annotations

from pathlib import Path

from envs.spec import Sample
from envs.tasks.vqa.cells import picture_id, question_text, reference_answers
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_files import read_json, records
from envs.tasks.vqa.picture import Picture
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Records, Row, Rows
from envs.tasks.vqa.vqa_v2 import SOFT_SCORES


class TextVqa(DataSet):
    """Questions stay in lower case and without OCR tokens, as the published model was tuned."""

    name = "text_vqa"
    hub_id = "lmms-lab-encoder/textvqa"
    on_hub = Published(train="train", test="validation")
    in_original = Published(train="train", test="val")
    columns = (("question",), ("answers",), ("image",), ("question_id",), ("image_id",))
    key_columns = ("image_id",)

    def original(self, folder: Path, images: Path, split: str) -> Records:
        """TextVQA_0.5.1_SPLIT.json; the pictures of `val` lie with those of `train`."""
        names = [f"TextVQA_0.5.1_{split}.json"]
        place = images / ("test_images" if split == "test" else "train_images")
        rows = [
            {**row, "image": Picture(paths=(place / f"{row['image_id']}.jpg",))}
            for row in records(read_json(folder, names), "data", names[0])
        ]
        return Records(records=rows)

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The OpenImages picture."""
        return f"{self.name}:{picture_id(row['image_id'])}"

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `text_vqa`."""
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.folder),
            prompt=styled("text_vqa", question_text(row["question"])),
            answers=reference_answers(row.get("answers")),
        )

    def score(self, sample: Sample, answer: str) -> float:
        """VQA soft accuracy."""
        return SOFT_SCORES[self.config.vqa_score](answer, sample.answers)

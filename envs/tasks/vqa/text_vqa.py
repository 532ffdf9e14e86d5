"""TextVQA: questions about text in OpenImages pictures, with ten answers each.

The original, textvqa.org: TextVQA_0.5.1_SPLIT.json, pictures in `train_images/` (also those of
val) and `test_images/`; schema seen in facebook/textvqa, textvqa.py. The hub's columns: seen on
the viewer's page of pppop7/textvqa, a copy of lmms-lab/textvqa, renamed lmms-lab-encoder/textvqa.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from envs.spec import Sample
from envs.tasks.vqa.cells import picture_id, question_text, reference_answers
from envs.tasks.vqa.coco_2014_vqa import SOFT_SCORES
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_stream import json_records
from envs.tasks.vqa.picture import Picture
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Row, Rows


class TextVqa(DataSet):
    """Questions stay in lower case and without OCR tokens, as the published model was tuned."""

    name = "text_vqa"
    hub_ids = ("lmms-lab-encoder/textvqa", "lmms-lab/textvqa")
    scored_by = ("vqa_score",)
    on_hub = Published(train="train", test="validation")
    in_original = Published(train="train", test="val")
    columns = (("question",), ("answers",), ("image",), ("question_id",), ("image_id",))
    key_columns = ("image_id",)

    folder_aliases: Mapping[str, Sequence[str]] = {"train_images": ("train_val_images",)}

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """One file."""
        return ((f"TextVQA_0.5.1_{split}.json", f"TextVQA_0.5_{split}.json"),)

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """The records of `data`; the pictures of `val` are with those of `train`."""
        place = "test_images" if split == "test" else "train_images"
        for row in json_records(paths[0], "data"):
            kept = {key: row[key] for key in ("question_id", "question", "answers") if key in row}
            path = f"{place}/{row['image_id']}.jpg"
            yield {**kept, "image_id": row["image_id"], "image": {"path": path}}

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The OpenImages picture."""
        return f"{self.name}:{picture_id(row['image_id'])}"

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `text_vqa`."""
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.pictures),
            prompt=styled("text_vqa", question_text(row["question"])),
            answers=reference_answers(row.get("answers")),
        )

    def score(self, sample: Sample, answer: str) -> float:
        """VQA soft accuracy."""
        return SOFT_SCORES[self.config.vqa_score](answer, sample.answers)

"""TallyQA: counting questions about COCO and Visual Genome pictures.

The original, manoja328/TallyQA: one zip with train.json and test.json, each a list; schema seen in
its README, in allenai/molmo, olmo/hf_datasets/tally_qa.py, and in google-research/big_vision,
datasets/tallyqa. No faithful parquet copy was found. One sample per question: the published code
of Molmo makes one per picture and cannot score it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from envs.spec import DataError, Sample
from envs.tasks.vqa.cells import question_text
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_stream import json_records
from envs.tasks.vqa.picture import Picture, picture_key
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Row, Rows
from envs.tasks.vqa.text_match import molmo_exact_match


class TallyQa(DataSet):
    """`metadata` distinguishes simple and complex questions where the data set does (test only)."""

    name = "tally_qa"
    on_hub = Published(train="train", test="test")
    in_original = Published(train="train", test="test")
    columns = (("question",), ("answer",), ("image",), ("image_name",), ("question_id",))
    key_columns = ("image_name",)

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """One file, a list."""
        return ((f"{split}.json", f"tallyqa_{split}.json"),)

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """Its records; pictures are in train2014, val2014, VG_100K and VG_100K_2."""
        for row in json_records(paths[0], ""):
            yield {**row, "image_name": row["image"], "image": {"path": row["image"]}}

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The COCO or Visual Genome picture; overlap between the two is not known."""
        return picture_key(row["image_name"], self.name)

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `tally_qa`."""
        answer = row["answer"]
        if isinstance(answer, bool) or not str(answer).isdecimal():
            raise DataError(f"its answer {answer!r} is not a count: correct the row or take it out")
        kind = {True: "simple", False: "complex"}.get(row.get("issimple", -1), "")
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.pictures),
            prompt=styled("tally_qa", question_text(row["question"])),
            answers=(str(answer),),
            metadata={"kind": kind},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """Exact match."""
        return molmo_exact_match(answer, sample.answers)

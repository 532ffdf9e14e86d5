"""DocVQA: questions about scanned pages, whose answers are spans of the page.

The original, rrc.cvc.uab.es, challenge 17, task 1: SPLIT_v1.0_withQT.json and pages as
`documents/NAME.png`; schema seen in google-research/big_vision, datasets/docvqa/docvqa.py. Today's
download has `spdocvqa_qas/` and `spdocvqa_images/NAME.png` instead, with the same paths in the
JSON (seen in loaders of that name). The hub's columns: seen on the viewer's page of
lmms-lab/DocVQA, renamed lmms-lab-encoder/DocVQA; those of HuggingFaceM4/DocumentVQA are what
allenai/molmo, olmo/data/academic_datasets.py reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from envs.spec import Sample
from envs.tasks.vqa.cells import picture_id, question_text, reference_answers
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_stream import json_records
from envs.tasks.vqa.picture import Picture
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Row, Rows
from envs.tasks.vqa.text_match import molmo_anls


class DocVqa(DataSet):
    """Pages are split by document: no document is in two of our splits of one source."""

    name = "doc_qa"
    hub_ids = ("lmms-lab-encoder/DocVQA", "lmms-lab/DocVQA")
    configs = ("DocVQA",)
    on_hub = Published(train="validation", test="validation")
    in_original = Published(train="train", test="val")
    columns = (("question",), ("answers",), ("image",), ("questionId",), ("docId",))
    key_columns = ("ucsf_document_id", "docId")
    folder_aliases: Mapping[str, Sequence[str]] = {
        "documents": ("spdocvqa_images", "docvqa_images", "images")
    }

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """One file, with question types or without."""
        return ((f"{split}_v1.0_withQT.json", f"{split}_v1.0.json"),)

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """The records of `data`."""
        for row in json_records(paths[0], "data"):
            yield {**row, "image": {"path": str(PurePosixPath(row["image"]))}}

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The document, because its pages look alike."""
        return f"{self.name}:{picture_id(row.get('ucsf_document_id') or row['docId'])}"

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `doc_qa`."""
        kinds = row.get("question_types") or ()
        return Entry(
            question_id=str(row["questionId"]),
            picture=Picture.of_cell(row["image"], rows.pictures),
            prompt=styled("doc_qa", question_text(row["question"])),
            answers=reference_answers(row.get("answers")),
            metadata={"kind": ", ".join(kinds)},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """ANLS."""
        return molmo_anls(answer, sample.answers)

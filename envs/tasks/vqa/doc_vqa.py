"""DocVQA: questions about scanned pages, whose answers are spans of the page.

Source: rrc.cvc.uab.es, challenge 17, task 1.
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
from envs.tasks.vqa.text_match import molmo_anls


class DocVqa(DataSet):
    """Pages are told apart by document: no document is in two of our splits of one source."""

    name = "doc_qa"
    hub_id = "lmms-lab-encoder/DocVQA"
    configs = ("DocVQA",)
    on_hub = Published(train="validation", test="validation")
    in_original = Published(train="train", test="val")
    columns = (("question",), ("answers",), ("image",), ("questionId",), ("docId",))
    key_columns = ("ucsf_document_id", "docId")

    def original(self, folder: Path, images: Path, split: str) -> Records:
        """SPLIT_v1.0_withQT.json; a picture lies below the root or the folder of its split."""
        names = [f"{split}_v1.0_withQT.json", f"{split}_v1.0.json"]
        rows = [
            {
                **row,
                "image": Picture(paths=(images / row["image"], images / split / row["image"])),
            }
            for row in records(read_json(folder, names), "data", names[0])
        ]
        return Records(records=rows)

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The document, because its pages look alike."""
        return f"{self.name}:{picture_id(row.get('ucsf_document_id') or row['docId'])}"

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `doc_qa`."""
        kinds = row.get("question_types") or ()
        return Entry(
            question_id=str(row["questionId"]),
            picture=Picture.of_cell(row["image"], rows.folder),
            prompt=styled("doc_qa", question_text(row["question"])),
            answers=reference_answers(row.get("answers")),
            metadata={"kind": ", ".join(kinds)},
        )

    def score(self, sample: Sample, answer: str) -> float:
        """ANLS."""
        return molmo_anls(answer, sample.answers)

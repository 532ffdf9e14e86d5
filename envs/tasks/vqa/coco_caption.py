"""COCO captions 2014: one sample per picture, scored against all of its captions.

Source: cocodataset.org, captions_SPLIT2014.json. The published model saw no such data, so one
template is fixed here: `Caption the image with 1 or two sentences`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from envs.spec import Sample
from envs.tasks.vqa.cells import reference_answers, texts
from envs.tasks.vqa.cider import DocumentFrequencies, cider_d_reward
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_files import read_json, records
from envs.tasks.vqa.picture import Picture, coco_paths
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Records, Row, Rows

TEMPLATE = "Caption the image with 1 or two sentences"


class CocoCaption(DataSet):
    """References are stripped: many captions end in a space or a newline."""

    name = "coco_caption"
    hub_id = "lmms-lab-encoder/COCO-Caption"
    on_hub = Published(train="val", test="val")
    in_original = Published(train="train", test="val")
    columns = (("answer",), ("image",), ("question_id",))
    key_columns = ("question_id", "answer")

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self._frequencies: DocumentFrequencies | None = None

    def opened(self, rows: Rows) -> None:
        """Freezes the document frequencies of the captions that training draws from."""
        cells = (row["answer"] for row in rows.values(("answer",)))
        captions = (texts(cell, "captions") for cell in cells if cell)
        self._frequencies = DocumentFrequencies.from_references(captions)

    def original(self, folder: Path, images: Path, split: str) -> Records:
        """Groups captions_SPLIT2014.json by picture."""
        name = f"captions_{split}2014.json"
        content = read_json(folder, [name])
        captions: dict[int, list[str]] = defaultdict(list)
        for row in records(content, "annotations", name):
            captions[row["image_id"]].append(row["caption"])
        rows = [
            {
                "question_id": row["file_name"].removesuffix(".jpg"),
                "answer": captions[row["id"]],
                "image": Picture(paths=coco_paths(images, row["id"], (f"{split}2014",))),
            }
            for row in records(content, "images", name)
        ]
        return Records(records=rows)

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The COCO picture, whose number ends the question's id."""
        return f"coco:{int(str(row['question_id']).rpartition('_')[2])}"

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `coco_captioning`."""
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.folder),
            prompt=styled("coco_captioning", TEMPLATE),
            answers=tuple(caption.strip() for caption in reference_answers(row["answer"])),
        )

    def score(self, sample: Sample, answer: str) -> float:
        """CIDEr-D of the one caption against frozen document frequencies, as a share of its top."""
        assert self._frequencies is not None, "the data set is opened before an answer is scored"
        return cider_d_reward(answer, sample.answers, self._frequencies)

"""COCO captions 2014: one sample per picture, scored against all of its captions.

The original, cocodataset.org: captions_SPLIT2014.json, usually in `annotations/`. Schema seen in
ChulanZhang/molmo_hf, molmo/hf_datasets/coco_caption.py. The hub's columns: seen on the viewer's
page of lmms-lab/COCO-Caption, renamed lmms-lab-encoder/COCO-Caption; published records have the
name of the picture's file as `question_id`, `000000000042.jpg` or `COCO_val2014_000000000042.jpg`.
The published model saw no such data, so one template is fixed here: `Caption the image with 1 or
two sentences`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from envs.spec import Sample
from envs.tasks.vqa.arrow_cache import ArrowCache
from envs.tasks.vqa.cells import reference_answers, texts
from envs.tasks.vqa.cider import DocumentFrequencies, cider_d_reward
from envs.tasks.vqa.cider_counts import frequencies_of
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.data_set import DataSet, Entry, Published
from envs.tasks.vqa.json_stream import json_records
from envs.tasks.vqa.picture import Picture, coco_key
from envs.tasks.vqa.prompts import styled
from envs.tasks.vqa.rows import Row, Rows
from envs.tasks.vqa.split import Split

TEMPLATE = "Caption the image with 1 or two sentences"


class CocoCaption(DataSet):
    """References are stripped: many captions end in a space or a newline."""

    name = "coco_caption"
    hub_ids = ("lmms-lab-encoder/COCO-Caption", "lmms-lab/COCO-Caption")
    on_hub = Published(train="val", test="val")
    in_original = Published(train="train", test="val")
    columns = (("answer",), ("image",), ("question_id",))
    key_columns = ("question_id", "answer")

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self._frequencies: DocumentFrequencies | None = None

    def opened(self, train: Split, cache: ArrowCache) -> None:
        """Freezes the document frequencies of the training split's captions.

        They are those of the split before pictures that other data sets hold out are dropped, so
        that the score of a caption does not depend on the mixture.
        """
        chosen = frozenset(train.numbers.tolist())
        rows = enumerate(train.rows.values(("answer",)))
        cells = (row["answer"] for number, row in rows if number in chosen)
        captions = (texts(cell, "captions") for cell in cells if cell)
        self._frequencies = frequencies_of(captions, train, cache)

    def files(self, split: str) -> Sequence[Sequence[str]]:
        """Captions and pictures' names in one file."""
        return ((f"captions_{split}2014.json",),)

    def read(self, split: str, paths: Sequence[Path]) -> Iterator[Row]:
        """Groups the captions by picture."""
        captions: dict[int, list[str]] = defaultdict(list)
        for row in json_records(paths[0], "annotations"):
            captions[row["image_id"]].append(row["caption"])
        for row in json_records(paths[0], "images"):
            yield {
                "question_id": row["file_name"].removesuffix(".jpg"),
                "answer": captions[row["id"]],
                "image": {"path": f"{split}2014/{row['file_name']}"},
            }

    def picture_key(self, row: Row, rows: Rows, number: int) -> str:
        """The COCO picture, whose number ends the question's id, with or without `.jpg`."""
        return coco_key(row["question_id"])

    def entry(self, row: Row, rows: Rows, number: int) -> Entry:
        """Style `coco_captioning`."""
        return Entry(
            question_id=str(row["question_id"]),
            picture=Picture.of_cell(row["image"], rows.pictures),
            prompt=styled("coco_captioning", TEMPLATE),
            answers=tuple(caption.strip() for caption in reference_answers(row["answer"])),
        )

    def score(self, sample: Sample, answer: str) -> float:
        """CIDEr-D of the caption against frozen document frequencies, over its maximum."""
        assert self._frequencies is not None, "the data set is opened before an answer is scored"
        return cider_d_reward(answer, sample.answers, self._frequencies)

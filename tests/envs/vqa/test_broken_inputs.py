"""Every way in which a data set may be broken is one DataError that says what and where."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from envs.spec import DataError
from tests.envs.vqa.breaking import (
    Edit,
    cell,
    column,
    json_edit,
    no_rows,
    text,
    truncated,
    without,
)
from tests.envs.vqa.opening import opened

VQA = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
OK = ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")
CAPTIONS, DOC = "annotations/captions_val2014.json", "val_v1.0_withQT.json"
TEXT, ST, TALLY = "TextVQA_0.5.1_val.json", "train_task_3.json", "test.json"
SCIENCE, MMMU, VAL = "data/validation-*", "Accounting/validation-*", "data/validation-*"
TEXTS = pa.list_(pa.string())
BROKEN: list[tuple[str, str, Edit, str]] = [
    # (data set and form, what is wrong, how, part of the message)
    ("coco_2014_vqa:original", "no questions", without(VQA[0]), f"split 'val' of .*no {VQA[0]}"),
    ("coco_2014_vqa:original", "no annotations", without(VQA[1]), f"has no {VQA[1]}"),
    ("coco_2014_vqa:original", "cut JSON", truncated(VQA[0]), "not valid JSON.*download it again"),
    ("coco_2014_vqa:original", "empty file", text(VQA[0], ""), "is not valid JSON"),
    ("coco_2014_vqa:original", "no text", text(VQA[0], b"\xff\xfe\x00"), "is not valid JSON"),
    ("coco_2014_vqa:original", "pointer file", text(VQA[1], "version 1"), "is not valid JSON"),
    ("coco_2014_vqa:original", "a number", text(VQA[0], "7"), "no list of records 'questions'"),
    ("coco_2014_vqa:original", "a list", text(VQA[0], "[{}]"), "no list of records 'questions'"),
    (
        "coco_2014_vqa:original",
        "a list of numbers",
        json_edit(VQA[1], lambda c: {"annotations": [1, 2]}),
        "no list of records 'annotations'",
    ),
    (
        "coco_2014_vqa:original",
        "no questions in the file",
        json_edit(VQA[0], lambda c: {"questions": []}),
        "split 'val' of .* is empty",
    ),
    (
        "coco_2014_vqa:original",
        "ids that do not join",
        cell(f"{VQA[0]}:questions", "question_id", 5),
        "question 5 of v2_Open.* has no annotation in v2_mscoco.*: do both files belong",
    ),
    (
        "coco_2014_vqa:original",
        "files of two splits",
        lambda f: shutil.copy(f / VQA[1].replace("val", "train"), f / VQA[1]),
        "has no annotation in .*: do both files belong to the val split",
    ),
    (
        "coco_2014_vqa:original",
        "no question id",
        cell(f"{VQA[0]}:questions", "question_id", ...),
        "split 'val' .*not as published .KeyError: 'question_id'",
    ),
    (
        "coco_2014_vqa:original",
        "no image id",
        cell(f"{VQA[0]}:questions", "image_id", None),
        "coco_2014_vqa: split 'val' .*not as published",
    ),
    (
        "coco_2014_vqa:original",
        "null question",
        cell(f"{VQA[0]}:questions", "question", None),
        r"sample coco_2014_vqa/test/\d .row 0 of val, v2_Open.*.: its question is None",
    ),
    (
        "coco_2014_vqa:original",
        "blank question",
        cell(f"{VQA[0]}:questions", "question", " \n"),
        r"its question is ' \\n'",
    ),
    (
        "coco_2014_vqa:original",
        "a number as question",
        cell(f"{VQA[0]}:questions", "question", 3),
        "its question is 3: correct the row",
    ),
    (
        "coco_2014_vqa:original",
        "null answers",
        cell(f"{VQA[1]}:annotations", "answers", None, number=1),
        "it has no reference answers",
    ),
    (
        "coco_2014_vqa:original",
        "a text as answers",
        cell(f"{VQA[1]}:annotations", "answers", "red", number=1),
        "its answers are 'red', not a list of texts",
    ),
    (
        "coco_2014_vqa:original",
        "answers of numbers",
        cell(f"{VQA[1]}:annotations", "answers", [{"answer": 3}], number=1),
        r"its answers \[3\] are not all texts",
    ),
    ("coco_2014_vqa:original", "no pictures", without("val2014"), "its image is missing .looked"),
    ("coco_2014_vqa:parquet", "no parquet", without("data/*"), "there are no parquet|has no v2_"),
    ("coco_2014_vqa:parquet", "cut parquet", truncated(VAL), "cannot be read .*download it again"),
    ("coco_2014_vqa:parquet", "no rows", no_rows(VAL), "0-of-00002.parquet is empty"),
    ("coco_2014_vqa:parquet", "no image_id", column(VAL, "image_id", ...), "no column image_id"),
    (
        "coco_2014_vqa:parquet",
        "shards of two schemas",
        column("data/validation-00001*", "question_id", ["x"], TEXTS),
        "cannot be read together",
    ),
    (
        "coco_2014_vqa:parquet",
        "image ids of text",
        column(VAL, "image_id", "cat", pa.string()),
        "row 0 of validation: 'cat' has no number of a COCO picture",
    ),
    (
        "coco_2014_vqa:parquet",
        "pictures by URL",
        column(VAL, "image", "http://x", pa.string()),
        "an image column of str: give bytes and path",
    ),
    ("coco_2014_vqa:parquet", "null pictures", column(VAL, "image", None), "its image is missing"),
    ("coco_caption:original", "no captions", without(CAPTIONS), "captions_val2014.json"),
    (
        "coco_caption:original",
        "no images",
        json_edit(CAPTIONS, lambda c: {"annotations": c["annotations"]}),
        "no list of records 'images'",
    ),
    (
        "coco_caption:original",
        "no caption of a picture",
        json_edit(CAPTIONS, lambda c: {**c, "annotations": c["annotations"][:3]}),
        "it has no reference answers",
    ),
    (
        "coco_caption:original",
        "a null caption",
        cell("annotations/captions_train2014.json:annotations", "caption", None),
        "coco_caption: the split that training draws from: its captions .* are not all texts",
    ),
    (
        "coco_caption:original",
        "no file name",
        cell(f"{CAPTIONS}:images", "file_name", ...),
        "coco_caption: split 'val' .*KeyError: 'file_name'",
    ),
    (
        "coco_caption:parquet",
        "an id without a number",
        column("data/val-*", "question_id", "cat", pa.string()),
        "row 0 of val: 'cat' has no number of a COCO picture",
    ),
    (
        "coco_caption:parquet",
        "one text as captions",
        column("data/val-*", "answer", "A cat.", pa.string()),
        "its captions are 'A cat.', not a list of texts",
    ),
    ("doc_qa:original", "no JSON", without("*.json"), "train_v1.0_withQT.json or train_v1.0.json"),
    ("doc_qa:original", "no image", cell(f"{DOC}:data", "image", ...), "KeyError: 'image'"),
    ("doc_qa:original", "null image", cell(f"{DOC}:data", "image", None), "doc_qa: split 'val'"),
    ("doc_qa:original", "one answer", cell(f"{DOC}:data", "answers", "red"), "not a list of texts"),
    (
        "doc_qa:original",
        "blank answers",
        cell(f"{DOC}:data", "answers", ["", " "]),
        "it has no reference answers",
    ),
    ("doc_qa:original", "no pages", without("documents"), "its image is missing .looked for"),
    (
        "doc_qa:parquet",
        "no document",
        lambda f: [column(f"DocVQA/{VAL[5:]}", c, None)(f) for c in ("ucsf_document_id", "docId")],
        "row 0 of validation: its picture has no id",
    ),
    (
        "doc_qa:parquet",
        "another configuration alone",
        without("DocVQA"),
        "no column docId|no parquet files of split",
    ),
    ("mmmu:parquet", "no question", column(MMMU, "question", None), "its question is None"),
    (
        "mmmu:parquet",
        "null id",
        column(MMMU, "id", None),
        "row 0 of v.*: its picture has no id",
    ),
    ("mmmu:parquet", "null answer", column(MMMU, "answer", None), "not as published"),
    ("mmmu:parquet", "hidden answers", column(MMMU, "answer", "?"), r"'\?'.*without answers"),
    (
        "mmmu:parquet",
        "a letter too far",
        column(MMMU, "answer", "J"),
        "its answer 'J' is not a letter of its [49] options",
    ),
    (
        "mmmu:parquet",
        "options that are no list",
        column(MMMU, "options", "yes, no"),
        "its options 'yes, no' are not the text of a list",
    ),
    (
        "mmmu:parquet",
        "cut options",
        column(MMMU, "options", "['yes', 'n"),
        "are not the text of a list",
    ),
    (
        "mmmu:parquet",
        "code in the options",
        column(MMMU, "options", "[__import__('os').abort()]"),
        "are not the text of a list",
    ),
    ("mmmu:parquet", "no options", column(MMMU, "options", "[]"), "and has no options"),
    ("mmmu:parquet", "marked, not there", column(MMMU, "image_1", None), "its image is missing"),
    (
        "mmmu:parquet",
        "no options column",
        column(f"*/{MMMU[11:]}", "options", ...),
        "no column options",
    ),
    ("okvqa:original", "no questions", without(OK[0]), f"has no {OK[0]}"),
    (
        "okvqa:original",
        "answers of nothing",
        cell(f"{OK[1]}:annotations", "answers", [], number=1),
        "it has no reference answers|not as published .IndexError",
    ),
    (
        "okvqa:parquet",
        "one text as answers",
        column("data/val2014-*", "answers", "red", pa.string()),
        "its answers are 'red', not a list of texts",
    ),
    (
        "okvqa:parquet",
        "no ids",
        column("data/val2014-*", "question_id", None),
        "okvqa: split 'val2014' .*row 0 of val2014: not as published",
    ),
    ("science_qa_img:parquet", "answer too far", column(SCIENCE, "answer", 9), "its answer 9 is"),
    ("science_qa_img:parquet", "negative", column(SCIENCE, "answer", -1), "its answer -1 is not"),
    ("science_qa_img:parquet", "no answer", column(SCIENCE, "answer", None), "its answer None is"),
    (
        "science_qa_img:parquet",
        "a fraction as answer",
        column(SCIENCE, "answer", 0.5, pa.float32()),
        "its answer 0.5 is not the index of one of its",
    ),
    (
        "science_qa_img:parquet",
        "one text as choices",
        column(SCIENCE, "choices", "yes", pa.string()),
        "its choices are 'yes', not a list",
    ),
    (
        "science_qa_img:parquet",
        "a null choice",
        column(SCIENCE, "choices", ["a", None]),
        "are not all texts",
    ),
    ("science_qa_img:parquet", "no choices", column(SCIENCE, "choices", []), "of its 0 choices"),
    ("science_qa_img:parquet", "null question", column(SCIENCE, "question", None), "question is N"),
    (
        "science_qa_img:parquet",
        "no choices at all",
        column(SCIENCE, "choices", ...),
        "no column choices",
    ),
    ("science_qa_img:lmms", "two configurations", lambda f: None, "in several configurations"),
    ("st_qa:original", "few questions", json_edit(ST, lambda c: {"data": c["data"][:3]}), "lower"),
    ("st_qa:original", "no data", json_edit(ST, lambda c: {}), "no list of records 'data'"),
    ("st_qa:original", "an id of text", cell(f"{ST}:data", "question_id", "x"), "ValueError"),
    ("st_qa:original", "no path", cell(f"{ST}:data", "file_path", ...), "KeyError: 'file_path'"),
    ("st_qa:original", "a path of a number", cell(f"{ST}:data", "file_path", 7), "TypeError"),
    ("st_qa:original", "long", cell(f"{ST}:data", "file_path", "x" * 300), "image is missing"),
    ("tally_qa:original", "a dict", text(TALLY, '{"data": []}'), "no list of records"),
    ("tally_qa:original", "null answer", cell(TALLY, "answer", None), "None is not a count"),
    ("tally_qa:original", "a fraction", cell(TALLY, "answer", 4.5), "4.5 is not a count"),
    ("tally_qa:original", "below zero", cell(TALLY, "answer", -1), "-1 is not a count"),
    ("tally_qa:original", "true", cell(TALLY, "answer", True), "True is not a count"),
    ("tally_qa:original", "no image", cell(TALLY, "image", ...), "KeyError: 'image'"),
    ("text_vqa:original", "not joined", cell(f"{TEXT}:data", "image_id", ...), "KeyError: 'image"),
    ("text_vqa:original", "no answers", cell(f"{TEXT}:data", "answers", ...), "no column answers"),
    ("text_vqa:parquet", "no image id", column(VAL, "image_id", None), "its picture has no id"),
    ("text_vqa:parquet", "no bytes", column(VAL, "image", {"path": "x.jpg"}), "image is missing"),
    ("text_vqa:parquet", "numbers", column(VAL, "answers", [1], pa.list_(pa.int8())), "not all t"),
]


def first_error(task: Any) -> DataError | None:
    """Opens every split and loads every sample, and returns what went wrong first."""
    try:
        for split in ("test", "validation", "train"):
            for index in range(task.num_samples(split)):
                sample = task.sample(split, index)
                assert sample.image is not None
                assert sample.prompt
                task.score(sample, "a")
    except DataError as error:
        return error
    return None


def test_the_table_is_long_and_covers_all_data_sets():
    assert len(BROKEN) >= 60
    assert len({form.partition(":")[0] for form, *_ in BROKEN}) == 9
    assert len({(form, what) for form, what, *_ in BROKEN}) == len(BROKEN)


@pytest.mark.parametrize(
    ("form", "what", "edit", "message"), BROKEN, ids=[f"{form}-{what}" for form, what, *_ in BROKEN]
)
def test_broken_data_sets(
    form: str, what: str, edit: Edit, message: str, root: Path, tmp_path: Path
):
    name = form.partition(":")[0]
    folder = tmp_path / form
    shutil.copytree(root / form, folder)
    edit(folder)
    own = {"configs": {}} if what == "two configurations" else {}
    task = opened(root, form, sources={name: str(folder)}, **own)
    error = first_error(task)
    assert error is not None, "it went unnoticed"
    assert type(error) is DataError
    assert name in str(error)
    assert re.search(message, str(error)), error
    assert "\n" not in str(error)

"""Every trap stands in the files where `traps` says, and is what it says."""

import ast
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from tests.envs.vqa.fixtures import (
    ORIGINAL,
    PARQUET,
    traps,
    write_original,
    write_parquet,
)
from tests.envs.vqa.fixtures.coco import rename_to_coco_2017
from tests.envs.vqa.fixtures.okvqa import write_vqa_v1
from tests.envs.vqa.fixtures.st_qa import SHUFFLED, move_pictures
from tests.envs.vqa.fixtures.traps import Trap

Row = dict[str, Any]

ID_COLUMN = {"doc_qa": "questionId", "mmmu": "id"}
PARQUET_NAMES = {
    ("coco_caption", "validation"): "val",
    ("okvqa", "validation"): "val2014",
}
ORIGINAL_NAMES = {
    "coco_2014_vqa": {
        "train": "v2_mscoco_train2014_annotations.json",
        "validation": "v2_mscoco_val2014_annotations.json",
        "test": "v2_OpenEnded_mscoco_test2015_questions.json",
    },
    "coco_caption": {
        "train": "annotations/captions_train2014.json",
        "validation": "annotations/captions_val2014.json",
    },
    "doc_qa": {
        "train": "train_v1.0_withQT.json",
        "validation": "val_v1.0_withQT.json",
        "test": "test_v1.0.json",
    },
    "okvqa": {
        "train": "mscoco_train2014_annotations.json",
        "validation": "mscoco_val2014_annotations.json",
    },
    "st_qa": {"train": "train_task_3.json", "test": "test_task_3.json"},
    "tally_qa": {"train": "train.json", "test": "test.json"},
    "text_vqa": {
        "train": "TextVQA_0.5.1_train.json",
        "validation": "TextVQA_0.5.1_val.json",
        "test": "TextVQA_0.5.1_test.json",
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vqa")
    for name, variant in PARQUET:
        write_parquet(name, folder / f"parquet-{name}-{variant}", variant=variant)
    for name in ORIGINAL:
        write_original(name, folder / f"original-{name}")
    return folder


def parquet_rows(root: Path, name: str, split: str, variant: str | None = None) -> list[Row]:
    split = PARQUET_NAMES.get((name, split), split) if variant is None else split
    variant = "flat" if name == "st_qa" else variant
    folder = root / f"parquet-{name}-{variant}"
    paths = [path for path in folder.rglob(f"{split}-*") if path.parent.name != "InfographicVQA"]
    return [row for path in sorted(paths) for row in pq.read_table(path).to_pylist()]


def parquet_row(root: Path, trap: Trap) -> Row:
    variant = "script" if (trap.data_set, trap.split) == ("okvqa", "train") else None
    rows = parquet_rows(root, trap.data_set, trap.split, variant)
    if trap.data_set == "science_qa_img":
        return rows[int(trap.id)]
    key = ID_COLUMN.get(trap.data_set, "question_id")
    found = [row for row in rows if id_of(row[key], trap.data_set) == trap.id]
    assert len(found) == 1, trap
    return found[0]


def id_of(value: Any, name: str) -> str:
    if name != "coco_caption":
        return str(value)
    return str(int(value.rsplit("_", 1)[-1].removesuffix(".jpg")))


def original_records(root: Path, name: str, split: str) -> list[Row]:
    content = json.loads((root / f"original-{name}" / ORIGINAL_NAMES[name][split]).read_text())
    if isinstance(content, list):
        return content
    return next(
        content[key] for key in ("images", "annotations", "questions", "data") if key in content
    )


def original_record(root: Path, trap: Trap) -> Row:
    key = "id" if trap.data_set == "coco_caption" else ID_COLUMN.get(trap.data_set, "question_id")
    records = original_records(root, trap.data_set, trap.split)
    found = [record for record in records if str(record[key]) == trap.id]
    assert len(found) == 1, trap
    return found[0]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def all_traps() -> list[Trap]:
    values = [value for value in vars(traps).values() if isinstance(value, Trap | tuple)]
    return [
        trap
        for value in values
        for trap in (value if isinstance(value, tuple) else (value,))
        if isinstance(trap, Trap)
    ]


def test_every_trap_is_in_its_files(root: Path):
    assert len(all_traps()) > 50
    for trap in all_traps():
        for form in trap.forms:
            assert parquet_row(root, trap) if form == "parquet" else original_record(root, trap)


def test_the_held_out_questions_come_first_in_the_shuffle(root: Path):
    ids = [entry["question_id"] for entry in original_records(root, "st_qa", "train")]
    assert ids != sorted(ids)
    assert sorted(ids) != sorted(ids, key=str)
    shuffled = sorted(ids)
    np.random.RandomState(63069).shuffle(shuffled)
    assert tuple(shuffled) == SHUFFLED
    as_strings = sorted(str(number) for number in ids)
    np.random.RandomState(63069).shuffle(as_strings)
    assert as_strings != [str(number) for number in SHUFFLED]
    strings = [row["question_id"] for row in parquet_rows(root, "st_qa", "train")]
    assert sorted(strings, key=int) == [str(number) for number in sorted(ids)]


def test_pictures_shared_between_sets(root: Path):
    name = "COCO_val2014_000000000042.jpg"
    assert original_record(root, traps.VAL_PICTURE_EVALUATED)["image_id"] == 42
    assert original_record(root, traps.VAL_PICTURE_TRAINED_ON)["image"] == f"val2014/{name}"
    vqa, tally = (
        (root / f"original-{data_set}/val2014/{name}").read_bytes()
        for data_set in ("coco_2014_vqa", "tally_qa")
    )
    assert vqa == tally == parquet_row(root, traps.VAL_PICTURE_EVALUATED)["image"]["bytes"]
    name = "COCO_train2014_000000000025.jpg"
    held_out, same = (
        original_record(root, trap)
        for trap in (traps.TRAIN_PICTURE_HELD_OUT, traps.TRAIN_PICTURE_SAME_SET)
    )
    assert held_out["file_path"] == same["file_path"] == f"coco-text/{name}"
    for trap in traps.TRAIN_PICTURE_TRAINED_ON:
        record = original_record(root, trap)
        image_id = record["id"] if trap.data_set == "coco_caption" else record["image_id"]
        assert image_id == 25
        assert (root / f"original-{trap.data_set}/train2014/{name}").is_file()


def test_documents_and_pixels_shared_between_splits(root: Path):
    pages = [
        original_record(root, trap)
        for trap in (traps.SAME_DOCUMENT_EVALUATED, traps.SAME_DOCUMENT_TRAINED_ON)
    ]
    assert {page["ucsf_document_id"] for page in pages} == {"hlmn0012"}
    assert len({page["image"] for page in pages}) == 2
    evaluated, trained_on = (
        parquet_row(root, trap)["image"]["bytes"]
        for trap in (traps.SAME_PIXELS_EVALUATED, traps.SAME_PIXELS_TRAINED_ON)
    )
    assert evaluated != trained_on
    assert np.array_equal(np.asarray(opened(evaluated)), np.asarray(opened(trained_on)))


def test_questions_and_annotations_are_in_different_orders(root: Path):
    for name, version in zip(traps.ORDER_DIFFERS, ("v2_", ""), strict=True):
        for subset in ("train2014", "val2014"):
            questions = f"{version}OpenEnded_mscoco_{subset}_questions.json"
            annotations = f"{version}mscoco_{subset}_annotations.json"
            folder = root / f"original-{name}"
            asked = json.loads((folder / questions).read_text())["questions"]
            answered = json.loads((folder / annotations).read_text())["annotations"]
            orders = [[record["question_id"] for record in part] for part in (asked, answered)]
            assert orders[0] != orders[1]
            assert sorted(orders[0]) == sorted(orders[1])


def test_answers(root: Path):
    for trap in traps.TEN_EQUAL_ANSWERS:
        answers = parquet_row(root, trap)["answers"]
        texts = [answer["answer"] if isinstance(answer, dict) else answer for answer in answers]
        assert texts == [texts[0]] * 10
    assert parquet_row(root, traps.TEN_EMPTY_ANSWERS)["answers"] == [""] * 10
    assert parquet_row(root, traps.EMPTY_ANSWERS)["answers"] == []
    assert original_record(root, traps.EMPTY_ANSWERS)["answers"] == []
    for trap in traps.WITHOUT_ANSWERS:
        key = "answer" if trap.data_set == "coco_caption" else "answers"
        for form in trap.forms:
            row = parquet_row(root, trap) if form == "parquet" else original_record(root, trap)
            assert not row.get(key)
    reduced = original_record(root, traps.REDUCED_ANSWER)["answers"][0]
    assert (reduced["raw_answer"], reduced["answer"]) == ("racing", "race")
    captions = parquet_row(root, traps.TRAILING_SPACE)["answer"]
    assert captions[2].endswith(" ")
    assert captions[3].endswith("\n")
    assert len(parquet_row(root, traps.SIX_CAPTIONS)["answer"]) == 6
    assert original_record(root, traps.ZERO_COUNT)["answer"] == 0
    first, second = (original_record(root, trap) for trap in traps.ANY_ANSWER_OF_THE_PICTURE)
    assert first["image"] == second["image"]
    assert first["answer"] != second["answer"]


def test_mmmu(root: Path):
    options = {
        trap.id: ast.literal_eval(parquet_row(root, trap)["options"])
        for trap in (traps.MIXED_QUOTES, traps.NINE_OPTIONS, traps.OPEN_QUESTION)
    }
    with pytest.raises(json.JSONDecodeError):
        json.loads(parquet_row(root, traps.MIXED_QUOTES)["options"].replace("'", '"'))
    assert [len(choices) for choices in options.values()] == [4, 9, 0]
    for trap in traps.REFERENCE_LISTS:
        assert len(ast.literal_eval(parquet_row(root, trap)["answer"])) == 2
    letter = parquet_row(root, traps.OPEN_WITH_LETTER)
    assert (letter["question_type"], letter["answer"]) == ("short-answer", "B")
    for trap, present in (
        (traps.IMAGES_IN_OPTIONS, 4),
        (traps.IMAGES_IN_OPTIONS_ONLY, 2),
        (traps.IMAGE_OF_THE_EXPLANATION, 2),
    ):
        row = parquet_row(root, trap)
        assert sum(row[f"image_{number}"] is not None for number in range(1, 8)) == present
    explained = parquet_row(root, traps.IMAGE_OF_THE_EXPLANATION)
    assert "<image 2>" not in explained["question"] + explained["options"]
    assert "<image 2>" in explained["explanation"]


def test_science_qa(root: Path):
    assert parquet_row(root, traps.NULL_STRUCT)["image"] is None
    assert parquet_row(root, traps.STRUCT_OF_NULLS)["image"] == {"bytes": None, "path": None}
    assert parquet_row(root, traps.HINT)["hint"]
    assert parquet_row(root, traps.NO_HINT)["hint"] == ""
    assert len(parquet_row(root, traps.FIVE_CHOICES)["choices"]) == 5


def test_pictures_that_are_not_there(root: Path):
    assert parquet_row(root, traps.NULL_IMAGE)["image"] is None
    for trap, there in (
        (traps.BYTES_NULL_WITH_FILE, True),
        (traps.BYTES_NULL_WITHOUT_FILE, False),
    ):
        cell = parquet_row(root, trap)["image"]
        assert cell["bytes"] is None
        assert (root / "parquet-text_vqa-None" / cell["path"]).is_file() == there
    for trap in traps.MISSING_FILE:
        record = original_record(root, trap)
        image = record.get("image") or f"train_images/{record['image_id']}.jpg"
        assert not (root / f"original-{trap.data_set}" / image).exists()
    ids = [record["question_id"] for record in original_records(root, "tally_qa", "train")]
    assert int(traps.MISSING_FILE[-1].id) in ids


@pytest.mark.parametrize(
    ("trap", "column", "mode"),
    [
        (traps.PALETTE_IMAGE, "image_1", "P"),
        (traps.TRANSPARENT_PALETTE_IMAGE, "image_1", "P"),
        (traps.RGBA_IMAGES[0], "image_1", "RGBA"),
        (traps.RGBA_IMAGES[1], "image", "RGBA"),
        (traps.ONE_BIT_IMAGE, "image", "1"),
        (traps.GREY_IMAGES[0], "image", "L"),
        (traps.GREY_IMAGES[1], "image", "L"),
        (traps.SIXTEEN_BIT_IMAGE, "image", "I;16"),
    ],
)
def test_odd_modes(trap: Trap, column: str, mode: str, root: Path):
    assert opened(parquet_row(root, trap)[column]["bytes"]).mode == mode


def test_odd_pictures_in_the_sets(root: Path):
    record = original_record(root, traps.CMYK_IMAGE)
    assert Image.open(root / "original-tally_qa" / record["image"]).mode == "CMYK"
    turned = opened(parquet_row(root, traps.EXIF_TURNED_IMAGE)["image"]["bytes"])
    assert turned.size == (96, 72)
    assert ImageOps.exif_transpose(turned).size == (72, 96)
    assert opened(parquet_row(root, traps.ONE_PIXEL_IMAGE)["image"]["bytes"]).size == (1, 72)
    assert parquet_row(root, traps.ZERO_BYTES_IMAGE)["image"]["bytes"] == b""
    with pytest.raises(UnidentifiedImageError):
        opened(parquet_row(root, traps.NOT_AN_IMAGE)["image"]["bytes"])
    with pytest.raises(OSError, match="truncated"):
        opened(parquet_row(root, traps.TRUNCATED_IMAGE)["image"]["bytes"]).load()


def test_other_layouts_of_the_originals(tmp_path: Path):
    folder = write_original("coco_2014_vqa", tmp_path / "vqa")
    rename_to_coco_2017(folder)
    assert (folder / "train2017/000000000042.jpg").is_file()
    assert (folder / "val2017/000000000139.jpg").is_file()
    assert not list(folder.rglob("COCO_*.jpg"))
    folder = write_original("st_qa", tmp_path / "st")
    move_pictures(folder)
    assert (folder / "train_images/icdar/img_7.jpg").is_file()
    assert (folder / "test_task3_images/icdar/img_900.jpg").is_file()
    folder = write_vqa_v1(tmp_path / "v1")
    content = json.loads((folder / "mscoco_val2014_annotations.json").read_text())
    assert "raw_answer" not in content["annotations"][0]["answers"][0]

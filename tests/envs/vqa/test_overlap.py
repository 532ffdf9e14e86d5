"""No picture stands in two splits of any mixed data sets, and dropped samples are counted."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from envs.tasks.data_mixture import DataMixture
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.picture import Picture, pixel_key
from envs.tasks.vqa.vqa_task import VqaTask
from tests.envs.vqa.fixtures import ORIGINAL, traps
from tests.envs.vqa.fixtures.odd_pictures import DECODABLE, exif_turned_jpeg
from tests.envs.vqa.fixtures.pictures import jpeg, picture, png
from tests.envs.vqa.opening import FORMS, mixed, opened, question_ids

ORIGINALS = tuple(f"{name}:original" for name in ORIGINAL)
PARQUET_ONLY = ("mmmu:parquet", "science_qa_img:parquet")
MIXTURES = {
    "originals": ORIGINALS,
    "all nine": (*ORIGINALS, *PARQUET_ONLY),
    "parquet": (
        *("coco_2014_vqa:parquet", "coco_caption:parquet", "doc_qa:parquet", "okvqa:parquet"),
        *("st_qa:parquet", "tally_qa:original", "text_vqa:parquet", *PARQUET_ONLY),
    ),
    "variants": (
        *("coco_2014_vqa:original", "coco_caption:parquet", "doc_qa:huggingface_m4"),
        *("mmmu:merged", "okvqa:script", "science_qa_img:lmms", "st_qa:original"),
        *("tally_qa:original", "text_vqa:original"),
    ),
}
"""Data sets that are opened together, in their different forms."""

DROPPED = {
    # val2014 pictures 42 and 139 are in the test split of captions, 42 in that of VQA v2, and
    # train2014 pictures 25 and 30 are held out by ST-VQA: questions 3, 101 and 21 come first.
    "coco_2014_vqa": {"25000", "30000", "30001"},
    "coco_caption": {"COCO_train2014_000000000025", "COCO_train2014_000000000030"},
    "okvqa": {"255"},
    "tally_qa": {"10000002", "10000004", "10000005"},
    "st_qa": {"8", "10", "1"},
    "doc_qa": {"351"},
    "text_vqa": set(),
    "mmmu": set(),
    "science_qa_img": {"train/1"},
}
"""Training questions of the nine data sets that share a picture with a test split."""


def overlaps(mixture: DataMixture) -> list[tuple[str, str, frozenset[str]]]:
    """Pairs of (data set, split) with pictures in common that must have none."""
    keys = {
        (name, split): task.keys(split)
        for (name, task), split in product(mixture.data_sets.items(), SPLITS)
    }
    return [
        (f"{a[0]}/{a[1]}", f"{b[0]}/{b[1]}", keys[a] & keys[b])
        for a, b in product(keys, keys)
        if SPLITS.index(a[1]) > SPLITS.index(b[1]) and keys[a] & keys[b]
    ]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("forms", MIXTURES.values(), ids=MIXTURES)
def test_no_picture_is_in_two_splits(forms: tuple[str, ...], share: float, root: Path):
    mixture = mixed(root, *forms, validation_share=share)
    assert not overlaps(mixture)
    census = mixture.census()
    assert sum(found["test"] for found in census.values()) > 20


@pytest.mark.parametrize("form", FORMS)
def test_no_picture_of_a_single_data_set_is_in_two_splits(form: str, root: Path):
    assert not overlaps(mixed(root, form, validation_share=0.3))


def train_ids(task: VqaTask) -> set[str]:
    """Ids of all training questions, also of those without answers."""
    part = task.splits["train"]
    rows = {int(number): part.rows.row(int(number)) for number in part.numbers}
    return {
        str(row.get("question_id", row.get("questionId", f"train/{number}")))
        for number, row in rows.items()
    }


def test_the_dropped_questions_are_those_on_shared_pictures(root: Path):
    forms = MIXTURES["all nine"]
    mixture = mixed(root, *forms)
    alone = {form.partition(":")[0]: train_ids(opened(root, form)) for form in forms}
    kept = {name: train_ids(task) for name, task in mixture.data_sets.items()}
    assert {name: alone[name] - kept[name] for name in kept} == DROPPED
    dropped = {name: found["dropped"] for name, found in mixture.census().items()}
    assert dropped == {name: len(ids) for name, ids in DROPPED.items()}
    for name, task in mixture.data_sets.items():
        assert task.dropped == {"train": dropped[name], "validation": 0, "test": 0}


def test_the_traps_are_among_them():
    shared = (
        traps.VAL_PICTURE_TRAINED_ON,
        traps.TRAIN_PICTURE_SAME_SET,
        *traps.TRAIN_PICTURE_TRAINED_ON,
        traps.SAME_DOCUMENT_TRAINED_ON,
        traps.SAME_PIXELS_TRAINED_ON,
    )
    for trap in shared:
        ids = DROPPED[trap.data_set]
        assert any(trap.id in (own, own.rpartition("_")[2].lstrip("0")) for own in ids) or (
            f"train/{trap.id}" in ids
        ), trap


def test_what_is_evaluated_stays(root: Path):
    mixture = mixed(root, *MIXTURES["all nine"])
    for trap in (traps.VAL_PICTURE_EVALUATED, traps.SAME_DOCUMENT_EVALUATED):
        assert trap.id in question_ids(mixture.data_sets[trap.data_set], "test")
    held_out = question_ids(mixture.data_sets["st_qa"], "test")
    assert traps.TRAIN_PICTURE_HELD_OUT.id in held_out
    science = question_ids(mixture.data_sets["science_qa_img"], "test")
    assert f"validation/{traps.SAME_PIXELS_EVALUATED.id}" in science


def test_a_data_set_that_is_not_mixed_in_drops_nothing(root: Path):
    with_st_qa = mixed(root, "tally_qa:original", "st_qa:original").census()
    without = mixed(root, "tally_qa:original", "text_vqa:original").census()
    assert with_st_qa["tally_qa"]["dropped"] == 1
    assert without["tally_qa"] == {"train": 8, "validation": 0, "test": 6, "dropped": 0}


def test_validation_gives_way_to_test_and_training_to_both(root: Path):
    """VQA v2 alone divides its one split by pictures, so all three splits meet captions' test."""
    mixture = mixed(root, "coco_2014_vqa:parquet", "coco_caption:original")
    census = mixture.census()
    assert census["coco_2014_vqa"] == {"train": 0, "validation": 0, "test": 3, "dropped": 5}
    assert census["coco_caption"] == {"train": 6, "validation": 0, "test": 6, "dropped": 0}


def test_the_same_hash_divides_the_pictures_of_all_data_sets(root: Path):
    """Sets that are made of one split put a picture that they share on the same side."""
    mixture = mixed(root, "coco_2014_vqa:parquet", "coco_caption:parquet", "okvqa:parquet")
    assert all(found["dropped"] == 0 for found in mixture.census().values())


def cell(content: bytes) -> Picture:
    return Picture(content=content)


def test_equal_pixels_have_equal_keys_whatever_their_encoding():
    image = picture("one")
    encodings = [
        png(image),
        png(image, compress_level=0),
        png(image, optimize=True),
        png(image.convert("RGBA")),
    ]
    assert len(set(encodings)) == 4
    assert len({pixel_key(cell(content), "set", "row 0") for content in encodings}) == 1
    others = {pixel_key(cell(png(picture(key))), "set", "row 0") for key in ("two", "three")}
    assert len(others) == 2
    assert pixel_key(cell(jpeg(image)), "set", "row 0") not in others


def test_pictures_of_other_shapes_with_the_same_bytes_differ():
    wide, high = np.zeros((2, 8, 3), np.uint8), np.zeros((8, 2, 3), np.uint8)
    keys = {pixel_key(cell(png(Image.fromarray(a))), "set", "row 0") for a in (wide, high)}
    assert len(keys) == 2


def test_every_decodable_picture_has_a_key_of_its_pixels():
    keys = {make: pixel_key(cell(make("key")), "set", "row 0") for make in DECODABLE}
    assert all(key.startswith("set:") and "row" not in key for key in keys.values())
    assert pixel_key(cell(exif_turned_jpeg("other")), "set", "row 0") not in keys.values()


def test_broken_pictures_are_told_apart_by_their_row():
    keys = [pixel_key(cell(b"not a picture"), "set", f"row {number}") for number in (3, 4)]
    assert keys == ["set:row 3", "set:row 4"]


def test_who_scores_differently_says_so(root: Path):
    """A profile or checkpoint under another metric does not belong to the same run."""
    forms = ("text_vqa:parquet", "doc_qa:parquet")
    for changes, expected in (
        ({}, ("text_vqa", "doc_qa", "digits")),
        ({"vqa_score": "vqa_v2"}, ("text_vqa (vqa_score vqa_v2)", "doc_qa", "digits")),
        ({"mmmu_answer": "mmmu"}, ("text_vqa", "doc_qa", "digits")),
    ):
        assert mixed(root, *forms, also=("digits",), **changes).descriptions() == expected

"""The fixtures have the published schemas, so that they cannot drift to what a loader expects."""

import json
from collections.abc import Set
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.envs.vqa.fixtures import ORIGINAL, PARQUET, write_original, write_parquet

IMAGE = "struct<bytes: binary, path: string>"
TEXTS = "list<element: string>"
VQA_ANSWERS = "list<element: struct<answer: string, answer_confidence: string, answer_id: int64>>"
SCRIPT_ANSWERS = (
    "list<element: struct<answer: string, raw_answer: string, answer_confidence: string,"
    " answer_id: int64>>"
)
SCIENCE = {
    **{"image": IMAGE, "question": "string", "choices": TEXTS, "answer": "int8"},
    **dict.fromkeys(
        "hint task grade subject topic category skill lecture solution".split(), "string"
    ),
}
MMMU = {
    **dict.fromkeys("id question options explanation".split(), "string"),
    **{f"image_{number}": IMAGE for number in (1, 2, 3, 4, 5, 6, 7)},
    **dict.fromkeys("img_type answer topic_difficulty question_type subfield".split(), "string"),
}
DOC_QA = {
    "questionId": "string",
    "question": "string",
    "question_types": TEXTS,
    "image": IMAGE,
    "docId": "int64",
    "ucsf_document_id": "string",
    "ucsf_document_page_no": "string",
    "answers": TEXTS,
    "data_split": "string",
}
M4 = {key: DOC_QA[key] for key in list(DOC_QA)[:-1]} | {"questionId": "int32", "docId": "int32"}
COLUMNS: dict[tuple[str, str | None], dict[str, str]] = {
    ("coco_2014_vqa", None): {
        "question_type": "string",
        "multiple_choice_answer": "string",
        "answers": VQA_ANSWERS,
        "image_id": "int64",
        "answer_type": "string",
        "question_id": "int64",
        "question": "string",
        "image": IMAGE,
    },
    ("coco_caption", None): {
        "question_id": "string",
        "image": IMAGE,
        "question": "string",
        "answer": TEXTS,
        "id": "int64",
        "license": "int8",
        "file_name": "string",
        "coco_url": "string",
        "height": "int32",
        "width": "int32",
        "date_captured": "string",
    },
    ("doc_qa", None): DOC_QA,
    ("doc_qa", "huggingface_m4"): M4,
    ("mmmu", None): MMMU,
    ("mmmu", "merged"): MMMU,
    ("okvqa", None): {
        "question_id": "string",
        "image": IMAGE,
        "question": "string",
        "answers": TEXTS,
        "question_type": "string",
        "answer_type": "string",
    },
    ("okvqa", "script"): {
        "image": IMAGE,
        "question_type": "string",
        "confidence": "int32",
        "answers": SCRIPT_ANSWERS,
        "image_id": "int64",
        "answer_type": "string",
        "question_id": "int64",
        "question": "string",
    },
    ("science_qa_img", None): SCIENCE,
    ("science_qa_img", "lmms"): SCIENCE,
    ("st_qa", None): {
        "image": IMAGE,
        "qas": "list<element: struct<question: string, answers: list<element: string>>>",
    },
    ("st_qa", "flat"): {
        "question_id": "string",
        "question": "string",
        "answers": TEXTS,
        "image": IMAGE,
    },
    ("text_vqa", None): {
        "image_id": "string",
        "question_id": "int32",
        "question": "string",
        "question_tokens": TEXTS,
        "image": IMAGE,
        "image_width": "int32",
        "image_height": "int32",
        "flickr_original_url": "string",
        "flickr_300k_url": "string",
        "answers": TEXTS,
        "image_classes": TEXTS,
        "set_name": "string",
        "ocr_tokens": TEXTS,
    },
}
SPLITS = {
    ("coco_2014_vqa", None): {"data/validation": 2, "data/testdev": 1, "data/test": 1},
    ("coco_caption", None): {"data/val": 2, "data/test": 1},
    ("doc_qa", None): {
        "DocVQA/train": 1,
        "DocVQA/validation": 2,
        "DocVQA/test": 1,
        "InfographicVQA/validation": 1,
    },
    ("doc_qa", "huggingface_m4"): {"data/train": 1, "data/validation": 2, "data/test": 1},
    ("mmmu", None): {
        f"{subject}/{split}": 2 if (subject, split) == ("Accounting", "validation") else 1
        for subject in ("Accounting", "Art_Theory", "Computer_Science", "Pharmacy")
        for split in ("dev", "validation", "test")
    },
    ("mmmu", "merged"): {"data/dev": 1, "data/validation": 2, "data/test": 1},
    ("okvqa", None): {"data/val2014": 2},
    ("okvqa", "script"): {"data/train": 1, "data/validation": 2},
    ("science_qa_img", None): {"data/train": 1, "data/validation": 2, "data/test": 1},
    ("science_qa_img", "lmms"): {
        f"ScienceQA-{config}/{split}": 1
        for config in ("IMG", "FULL")
        for split in ("train", "validation", "test")
    },
    ("st_qa", None): {"data/train": 2},
    ("st_qa", "flat"): {"data/train": 2, "data/test": 1},
    ("text_vqa", None): {"data/train": 1, "data/validation": 2, "data/test": 1},
}


@pytest.mark.parametrize(("name", "variant"), COLUMNS)
def test_parquet_has_the_published_columns_and_splits(
    name: str, variant: str | None, tmp_path: Path
):
    folder = write_parquet(name, tmp_path / "hub", variant=variant)
    assert folder == tmp_path / "hub"
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        split, shard = path.stem.split("-", 1)
        found.setdefault(f"{path.parent.name}/{split}", []).append(shard)
        assert path.parent.parent == folder
        if path.parent.name != "InfographicVQA":
            schema = pq.read_schema(path)
            columns = {field.name: str(field.type) for field in schema}
            assert list(columns.items()) == list(COLUMNS[name, variant].items())
    expected = {
        split: [f"{shard:05d}-of-{shards:05d}" for shard in range(shards)]
        for split, shards in SPLITS[name, variant].items()
    }
    assert found == expected


def test_every_form_is_tested():
    assert set(COLUMNS) == set(SPLITS) == set(PARQUET)
    assert len({name for name, _ in PARQUET} | set(ORIGINAL)) == 9


def test_forms_that_do_not_exist_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="tally_qa"):
        write_parquet("tally_qa", tmp_path)
    with pytest.raises(ValueError, match="huggingface_m4"):
        write_parquet("okvqa", tmp_path, variant="huggingface_m4")
    for name in ("mmmu", "science_qa_img"):
        with pytest.raises(ValueError, match=name):
            write_original(name, tmp_path)


VQA_QUESTIONS = "OpenEnded_mscoco_{}_questions.json"
QUESTION_KEYS = {"image_id", "question", "question_id"}
VQA_KEYS = "question_type multiple_choice_answer answers image_id answer_type question_id".split()
OKVQA_KEYS = "image_id question_id question_type answer_type confidence answers".split()
IMAGE_KEYS = "license file_name coco_url height width date_captured flickr_url id".split()
TALLY_KEYS = "answer data_source image image_id question question_id".split()
TEXT_VQA_KEYS = (
    "question image_id image_classes flickr_original_url flickr_300k_url image_width image_height"
    " answers question_tokens question_id set_name"
).split()
DOC_KEYS = (
    "questionId question question_types image docId ucsf_document_id ucsf_document_page_no"
    " answers data_split"
).split()
ORIGINAL_FILES: list[tuple[str, str, str | None, Set[str]]] = [
    *(
        (
            "coco_2014_vqa",
            f"v2_OpenEnded_mscoco_{subset}_questions.json",
            "questions",
            QUESTION_KEYS,
        )
        for subset in ("train2014", "val2014", "test2015")
    ),
    *(
        ("coco_2014_vqa", f"v2_mscoco_{subset}_annotations.json", "annotations", set(VQA_KEYS))
        for subset in ("train2014", "val2014")
    ),
    *(
        ("okvqa", VQA_QUESTIONS.format(subset), "questions", QUESTION_KEYS)
        for subset in ("train2014", "val2014")
    ),
    *(
        ("okvqa", f"mscoco_{subset}_annotations.json", "annotations", set(OKVQA_KEYS))
        for subset in ("train2014", "val2014")
    ),
    *(
        ("coco_caption", f"annotations/captions_{subset}.json", key, keys)
        for subset in ("train2014", "val2014")
        for key, keys in (
            ("images", set(IMAGE_KEYS)),
            ("annotations", {"image_id", "id", "caption"}),
        )
    ),
    ("doc_qa", "train_v1.0_withQT.json", "data", set(DOC_KEYS)),
    ("doc_qa", "val_v1.0_withQT.json", "data", set(DOC_KEYS)),
    ("doc_qa", "test_v1.0.json", "data", set(DOC_KEYS) - {"answers", "question_types"}),
    ("tally_qa", "train.json", None, set(TALLY_KEYS)),
    ("tally_qa", "test.json", None, {*TALLY_KEYS, "issimple"}),
    ("text_vqa", "TextVQA_0.5.1_train.json", "data", set(TEXT_VQA_KEYS)),
    ("text_vqa", "TextVQA_0.5.1_val.json", "data", set(TEXT_VQA_KEYS)),
    ("text_vqa", "TextVQA_0.5.1_test.json", "data", set(TEXT_VQA_KEYS) - {"answers"}),
]


@pytest.mark.parametrize(("name", "file", "list_key", "keys"), ORIGINAL_FILES)
def test_original_has_the_published_keys(
    name: str, file: str, list_key: str | None, keys: Set[str], tmp_path: Path
):
    content = json.loads((write_original(name, tmp_path) / file).read_text())
    records = content[list_key] if list_key else content
    assert isinstance(records, list)
    assert all(set(record) == keys for record in records)


def test_original_answers_have_the_published_keys(tmp_path: Path):
    folder = write_original("okvqa", tmp_path / "okvqa")
    okvqa = json.loads((folder / "mscoco_val2014_annotations.json").read_text())
    folder = write_original("coco_2014_vqa", tmp_path / "vqa")
    vqa = json.loads((folder / "v2_mscoco_val2014_annotations.json").read_text())
    keys = {"answer", "answer_confidence", "answer_id"}
    for content, expected in ((vqa, keys), (okvqa, {*keys, "raw_answer"})):
        for annotation in content["annotations"]:
            assert [set(answer) for answer in annotation["answers"]] == [expected] * 10
            assert [answer["answer_id"] for answer in annotation["answers"]] == [*range(1, 11)]


def test_st_qa_entries_have_the_certain_keys_and_more(tmp_path: Path):
    folder = write_original("st_qa", tmp_path)
    certain = {"question_id", "question", "file_path"}
    train = json.loads((folder / "train_task_3.json").read_text())["data"]
    test = json.loads((folder / "test_task_3.json").read_text())["data"]
    assert len(train) >= 12
    assert all({*certain, "answers"} < set(entry) for entry in train)
    assert all(certain < set(entry) and "answers" not in entry for entry in test)


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("coco_2014_vqa", "val2014/COCO_val2014_000000000042.jpg"),
        ("coco_2014_vqa", "test2015/COCO_test2015_000000000001.jpg"),
        ("coco_caption", "train2014/COCO_train2014_000000000009.jpg"),
        ("okvqa", "val2014/COCO_val2014_000000000042.jpg"),
        ("doc_qa", "documents/abcd0227_1.png"),
        ("doc_qa", "train/documents/xnbl0037_1.png"),
        ("st_qa", "coco-text/COCO_train2014_000000000025.jpg"),
        ("tally_qa", "train2014/COCO_train2014_000000000009.jpg"),
        ("tally_qa", "val2014/COCO_val2014_000000000042.jpg"),
        ("tally_qa", "VG_100K/2300001.jpg"),
        ("tally_qa", "VG_100K_2/2400001.jpg"),
        ("text_vqa", "train_images/003a8ae2ef43b901.jpg"),
        ("text_vqa", "test_images/00aa11bb22cc33d1.jpg"),
    ],
)
def test_original_pictures_are_where_the_publishers_put_them(
    name: str, example: str, tmp_path: Path
):
    assert (write_original(name, tmp_path) / example).is_file()


def test_one_seed_one_file(tmp_path: Path):
    for name in ORIGINAL:
        first = write_original(name, tmp_path / "first" / name)
        second = write_original(name, tmp_path / "second" / name)
        files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
        assert files
        assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)

"""Layouts and records as they are published, where loaders that guess go wrong.

Each case is written here, with made-up words. `expected` names what is right.
"""

import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from envs.spec import DataError
from envs.tasks.registry import build_tasks, load_tasks
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.picture import Picture, pixel_key
from tests.envs.vqa.fixtures.pictures import jpeg, picture, png
from tests.envs.vqa.fixtures.storage import IMAGE, image_cell, write_file, write_json
from tests.envs.vqa.opening import entries

GENERATOR = Path(__file__).resolve().parents[4] / "shared" / "cases" / "make_data_cases.py"


SCIENCE = pa.schema(
    [
        ("image", IMAGE),
        ("question", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("answer", pa.int8()),
        ("hint", pa.string()),
    ]
)


def task_of(name: str, folder: Path, **settings: Any) -> Any:
    return load_tasks([name], DataConfig(sources={name: str(folder)}, **settings))[name]


def total(task: Any) -> int:
    return sum(task.num_samples(split) for split in SPLITS)


def write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def write_nested_st_qa(folder: Path, num_pictures: int = 6) -> Path:
    """One row per picture, two questions in each, no ids."""
    question = pa.struct([("question", pa.string()), ("answers", pa.list_(pa.string()))])
    rows = [
        {
            "image": image_cell(jpeg(picture(f"street {number}"))),
            "qas": [
                {"question": f"what is shop {number} called", "answers": [f"Shop {number}"]},
                {"question": f"how late is it on clock {number}", "answers": ["4:10", "10 past 4"]},
            ],
        }
        for number in range(num_pictures)
    ]
    schema = pa.schema([("image", IMAGE), ("qas", pa.list_(question))])
    write_rows(folder / "data/train-00000-of-00001.parquet", rows, schema)
    return folder


def write_captions(folder: Path, name: str) -> Path:
    """Eight pictures with two captions each, ids by a template for the file's name."""
    rows = [
        {
            "question_id": name.format(number),
            "image": image_cell(jpeg(picture(f"caption {number}"))),
            "question": "Describe it, please.",
            "answer": [f"a green kite number {number}", f"kite {number} above a hill"],
            "file_name": name.format(number),
        }
        for number in range(1, 9)
    ]
    texts = [(column, pa.string()) for column in ("question_id", "question", "file_name")]
    schema = pa.schema([*texts, ("image", IMAGE), ("answer", pa.list_(pa.string()))])
    write_rows(folder / "data/val-00000-of-00001.parquet", rows, schema)
    return folder


def write_scene_text(folder: Path, place: str) -> Path:
    """Two questions on two pictures of Visual Genome, in a folder of this name."""
    data = [
        {
            "question_id": number,
            "question": "what is the bus line",
            "answers": ["12"],
            "file_path": f"{place}/{image}.jpg",
            "file_name": f"{image}.jpg",
            "dataset": place,
        }
        for number, image in ((1, 61201), (2, 61202))
    ]
    write_json(folder / "train_task_3.json", {"data": data})
    for record in data:
        write_file(folder / record["file_path"], jpeg(picture(record["file_name"])))
    return folder


def write_tally(folder: Path) -> Path:
    """Both pictures in the training split, another in test."""
    names = ("VG_100K/61201.jpg", "VG_100K_2/61202.jpg", "VG_100K/70009.jpg")
    records = [
        {
            "answer": 3,
            "data_source": "imported_genome",
            "image": name,
            "image_id": number,
            "question": "How many buses are there?",
            "question_id": number,
        }
        for number, name in enumerate(names)
    ]
    write_json(folder / "train.json", records[:2])
    write_json(folder / "test.json", [{**records[2], "issimple": True}])
    for name in names:
        write_file(folder / name, jpeg(picture(Path(name).name)))
    return folder


def page(number: int, split: str) -> dict[str, Any]:
    return {
        "questionId": number,
        "question": "Who is the sender?",
        "question_types": ["form"],
        "image": f"documents/bbbb{number}_1.png",
        "docId": number,
        "ucsf_document_id": f"bbbb{number}",
        "ucsf_document_page_no": "1",
        "answers": ["Grace Sample"],
        "data_split": split,
    }


def write_documents(folder: Path, *, annotations: str, pages: str) -> Path:
    """Two training pages and one of validation, in folders of these names."""
    for split, numbers in (("train", (21, 22)), ("val", (23,))):
        data = [page(number, split) for number in numbers]
        header = {"dataset_name": "docvqa", "dataset_version": "1.0", "dataset_split": split}
        name = f"{split}_v1.0_withQT.json"
        write_json(folder / annotations / name, {**header, "data": data})
        for number in numbers:
            write_file(folder / pages / f"bbbb{number}_1.png", png(picture(f"page {number}")))
    return folder


def test_st_qa_with_the_questions_of_a_picture_in_one_row(tmp_path: Path):
    task = task_of("st_qa", write_nested_st_qa(tmp_path))
    assert total(task) == 12
    found = entries(task)
    assert set(found) == {f"train/{row}/{place}" for row in range(6) for place in (0, 1)}
    split, index, entry = found["train/3/1"]
    assert entry.prompt == "st_qa: how late is it on clock 3"
    assert entry.answers == ("4:10", "10 past 4")
    sample = task.sample(split, index)
    assert np.array_equal(
        np.asarray(sample.image), np.asarray(Image.open(io.BytesIO(jpeg(picture("street 3")))))
    )
    for row in range(6):
        assert found[f"train/{row}/0"][0] == found[f"train/{row}/1"][0], "one picture, one split"
    assert len(frozenset().union(*(task.keys(name) for name in SPLITS))) == 6


@pytest.mark.parametrize("name", ["COCO_val2014_{:012}.jpg", "{:012}.jpg", "COCO_val2014_{:012}"])
def test_captions_whose_id_is_a_file_name(name: str, tmp_path: Path):
    task = task_of("coco_caption", write_captions(tmp_path, name))
    assert total(task) == 8
    keys = frozenset().union(*(task.keys(split) for split in SPLITS))
    assert keys == {f"coco:{number}" for number in range(1, 9)}
    sample = task.sample("train", 0)
    assert len(sample.answers) == 2
    assert 0 < task.score(sample, sample.answers[0]) <= 1


@pytest.mark.parametrize("place", ["VisualGenome", "visual_genome", "Visual_Genome", "VG_100K"])
def test_a_picture_of_visual_genome_is_the_same_in_both_sets(place: str, tmp_path: Path):
    folders = {
        "st_qa": str(write_scene_text(tmp_path / "scene", place)),
        "tally_qa": str(write_tally(tmp_path / "tally")),
    }
    config = DataConfig(sources=folders, held_out_st_qa=1, validation_share=0.0)
    census = build_tasks(["st_qa", "tally_qa"], config=config).census()
    assert census["st_qa"] == {"train": 1, "validation": 0, "test": 1, "dropped": 0}
    assert census["tally_qa"] == {"train": 1, "validation": 0, "test": 1, "dropped": 1}


@pytest.mark.parametrize(
    ("annotations", "pages"),
    [
        ("spdocvqa_qas", "spdocvqa_images"),
        (".", "documents"),
        ("task1/spdocvqa_qas", "task1/spdocvqa_images"),
        ("annotations", "images/documents"),
    ],
)
def test_documents_in_the_layouts_of_their_downloads(annotations: str, pages: str, tmp_path: Path):
    folder = write_documents(tmp_path, annotations=annotations, pages=pages)
    task = task_of("doc_qa", folder, validation_share=0.0)
    assert [task.num_samples(split) for split in SPLITS] == [2, 0, 1]
    for split in ("train", "test"):
        for index in range(task.num_samples(split)):
            assert task.sample(split, index).answers == ("Grace Sample",)


def test_a_bare_list_is_refused_by_its_own_name(tmp_path: Path):
    write_json(tmp_path / "train_v1.0.json", [page(21, "train")])
    write_json(tmp_path / "val_v1.0.json", [page(23, "val")])
    with pytest.raises(DataError, match=r"/train_v1\.0\.json has no list of records 'data'"):
        task_of("doc_qa", tmp_path).num_samples("train")


def test_pictures_with_sixteen_bits_are_told_apart():
    keys = set()
    for seed in (0, 1):
        values = np.random.default_rng(seed).integers(3_000, 50_000, (24, 24)).astype(np.uint16)
        keys.add(pixel_key(Picture(content=png(Image.fromarray(values))), "set", "train/0"))
    assert len(keys) == 2


def test_ids_of_science_qa_tell_their_splits(tmp_path: Path):
    for split in ("train", "validation"):
        rows = [
            {
                "image": image_cell(png(picture(f"{split} {number}"))),
                "question": "Which is larger?",
                "choices": ["this", "that"],
                "answer": 1,
                "hint": "",
            }
            for number in range(5)
        ]
        write_rows(tmp_path / f"data/{split}-00000-of-00001.parquet", rows, SCIENCE)
    task = task_of("science_qa_img", tmp_path, validation_share=0.0)
    assert set(entries(task)) == {f"{s}/{n}" for s in ("train", "validation") for n in range(5)}


def test_a_broken_picture_of_one_split_is_not_one_of_another(tmp_path: Path):
    for split in ("train", "validation"):
        content = [png(picture(f"{split} {n}")) for n in range(3)]
        content[1] = b"this is no picture"
        rows = [
            {"image": image_cell(c), "question": "Which?", "choices": ["a", "b"], "answer": 0}
            for c in content
        ]
        write_rows(tmp_path / f"data/{split}-00000-of-00001.parquet", rows, SCIENCE)
    config = DataConfig(sources={"science_qa_img": str(tmp_path)}, validation_share=0.0)
    census = build_tasks(["science_qa_img"], config=config).census()
    assert census["science_qa_img"]["dropped"] == 0


@pytest.mark.skipif(not GENERATOR.is_file(), reason=f"there is no generator at {GENERATOR}")
def test_the_cases_of_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", [str(GENERATOR), str(tmp_path)])
    runpy.run_path(str(GENERATOR), run_name="__main__")
    expected = json.loads((tmp_path / "expected.json").read_text())
    assert set(expected) == {
        *("st_qa_hub", "coco_caption_hub", "st_tally", "doc_qa_current", "doc_qa_list"),
        *("grey16", "text_vqa"),
    }
    nested = task_of("st_qa", tmp_path / "st_qa_hub")
    assert total(nested) == 12
    assert set(entries(nested)) == {f"train/{row}/{place}" for row in range(6) for place in (0, 1)}
    captions = task_of("coco_caption", tmp_path / "coco_caption_hub")
    keys = frozenset().union(*(captions.keys(split) for split in SPLITS))
    assert keys == {f"coco:{number}" for number in range(1, 9)}
    assert all(len(entry.answers) == 2 for _, _, entry in entries(captions).values())
    folders = {name: str(tmp_path / "st_tally" / name) for name in ("st_qa", "tally_qa")}
    config = DataConfig(sources=folders, held_out_st_qa=1, validation_share=0.0)
    assert build_tasks(list(folders), config=config).census()["tally_qa"]["dropped"] == 1
    documents = task_of("doc_qa", tmp_path / "doc_qa_current", validation_share=0.0)
    assert [documents.num_samples(split) for split in SPLITS] == [2, 0, 1]
    assert all(documents.sample("train", index).image for index in (0, 1))
    assert documents.sample("test", 0).image
    with pytest.raises(DataError, match=r"train_v1\.0\.json"):
        task_of("doc_qa", tmp_path / "doc_qa_list").num_samples("train")
    greys = [Picture(content=(tmp_path / f"grey16_{n}.png").read_bytes()) for n in "ab"]
    assert len({pixel_key(grey, "set", "train/0") for grey in greys}) == 2
    from envs.tasks.vqa.coco_2014_vqa import SOFT_SCORES

    scores = {name: score("Yes.", ["yes"] * 10) for name, score in SOFT_SCORES.items()}
    assert scores == {"molmo": 1.0, "vqa_v2": 0.0, "text_vqa": 1.0}

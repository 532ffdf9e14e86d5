"""Mistakes in a user's own tables: each is found, and the message says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envs.spec import DataError
from envs.tasks.registry import build_tasks, load_tasks
from envs.tasks.scene import SPLITS
from envs.tasks.vqa import finding
from envs.tasks.vqa.config import DataConfig
from tests.envs.vqa.fixtures.pictures import picture, png

HEADER = "image,question,answers\n"


def write_pictures(folder: Path, count: int) -> None:
    (folder / "images").mkdir(exist_ok=True)
    for number in range(count):
        (folder / "images" / f"{number}.png").write_bytes(png(picture(f"own {number}")))


def task_of(folder: Path, **settings: Any) -> Any:
    config = DataConfig(own={"mine": folder}, cache=folder / "cache", **settings)
    return load_tasks(["mine"], config)["mine"]


def sizes(task: Any) -> list[int]:
    return [task.num_samples(split) for split in SPLITS]


def samples(task: Any) -> list[Any]:
    return [task.sample(split, i) for split in SPLITS for i in range(task.num_samples(split))]


@pytest.mark.parametrize("place", ["", "last"])
def test_a_table_and_folders_beside_many_pictures(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_pictures(tmp_path, 3)
    for number in range(60):  # in whatever order the disk gives them
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "Train.csv").write_text(f"{HEADER}images/1.png,What?,x\n")
    monkeypatch.setattr(finding, "MAX_PICTURES", 0)
    assert sum(sizes(task_of(tmp_path))) == 1


def test_more_cells_than_columns(tmp_path: Path):
    write_pictures(tmp_path, 1)
    table = tmp_path / "train.csv"
    table.write_text(
        "image,answers,question\nimages/0.png,x,What?\nimages/0.png,Ada,Who, if any?\n"
    )
    with pytest.raises(DataError, match=r"line 3 of train\.csv has 4 cells .*put quotes"):
        sizes(task_of(tmp_path))
    table.write_text(f"{HEADER[:-1]},\nimages/0.png,What?,x,,\n,,,\n")
    (sample,) = samples(task_of(tmp_path))
    assert (sample.prompt, sample.answers) == ("vqa2: What?", ("x",))


def test_a_picture_written_in_several_ways_is_one(tmp_path: Path):
    write_pictures(tmp_path, 2)
    (tmp_path / "link.png").symlink_to(tmp_path / "images" / "0.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "folder").symlink_to(tmp_path / "images", target_is_directory=True)
    names = ("images/0.png", "./images/0.png", "0.png", "Images//0.png", "images/0.PNG", "link.png")
    names += ("elsewhere/folder/../link.png", "elsewhere/folder/0.png")
    rows = [f"{name},What?,x\n" for name in (*names, str(tmp_path / "images" / "0.png"))]
    (tmp_path / "train.csv").write_text(HEADER + "".join(rows) + "images/1.png,What?,x\n")
    (tmp_path / "test.csv").write_text(f"{HEADER}images/0.png,What?,x\n")
    task = task_of(tmp_path)
    assert len(task.keys("train") | task.keys("validation")) == 2


def test_two_own_sets_with_one_picture(tmp_path: Path):
    write_pictures(tmp_path, 2)
    for name, table, numbers in (("one", "test", (0,)), ("two", "train", (0, 1))):
        (tmp_path / name).mkdir()
        rows = [f"{tmp_path}/images/{n}.png,What?,x\n" for n in numbers]
        (tmp_path / name / f"{table}.csv").write_text(HEADER + "".join(rows))
    (tmp_path / "two" / "test.csv").write_text(f"{HEADER}gone.png,What?,x\n")
    config = DataConfig(
        own={name: tmp_path / name for name in ("one", "two")},
        cache=tmp_path / "cache",
        validation_share=0.0,
    )
    mixture: Any = build_tasks(["one", "two"], config=config)
    census = mixture.census()
    assert census["two"] == {"train": 1, "validation": 0, "test": 1, "dropped": 1}


def test_the_division_does_not_depend_on_where_the_folder_lies(tmp_path: Path):
    def division(folder: Path) -> list[list[str]]:
        task = task_of(folder)
        splits = [[task.entry(s, i) for i in range(task.num_samples(s))] for s in SPLITS]
        return [sorted(entry.question_id for entry in split) for split in splits]

    (tmp_path / "one").mkdir()
    write_pictures(tmp_path / "one", 20)
    rows = [f"images/{n}.png,What?,x\n" for n in range(20)]
    (tmp_path / "one" / "all.csv").write_text(HEADER + "".join(rows))
    before = division(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "other")
    assert division(tmp_path / "other") == before


def test_own_names_are_not_taken_for_those_of_public_sets(tmp_path: Path):
    write_pictures(tmp_path, 2)
    for number, name in enumerate(("COCO_scan_7.png", "coco_7.png", "vg/7.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(picture(f"{number}")))
    rows = [f"{n},What?,x\n" for n in ("COCO_scan_7.png", "vg/7.png", "coco_7.png")]
    (tmp_path / "train.csv").write_text(HEADER + "".join(rows))
    task = task_of(tmp_path)
    keys = frozenset().union(*(task.keys(split) for split in SPLITS))
    assert len(keys) == 3
    assert not [key for key in keys if key.startswith(("coco:", "vg:"))]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.csv", f"{HEADER}images/0.png,What?,a|\n", "line 2: one of its 2 answers is empty"),
        ("train.csv", f"{HEADER}images/0.png,What?,1 || 2\n", "line 2: one of its 3 answers is"),
        ("train.csv", f"{HEADER}images/0.png,What?,[unclear]\n", "line 2: .*no list in JSON"),
        ("train.jsonl", '[null, ""]', "line 1: one of its answers is null"),
        ("train.jsonl", '[["a"], "b"]', "line 1: one of its answers is ..a"),
        ("train.jsonl", '{"a": 1}', "line 1: one of its answers is ..a"),
        ("train.jsonl", "null", "line 1: it has no reference answers"),
    ],
)
def test_answers_that_are_none(name: str, text: str, message: str, tmp_path: Path):
    write_pictures(tmp_path, 1)
    if name.endswith("jsonl"):
        text = f'{{"image": "images/0.png", "question": "What?", "answers": {text}}}'
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as refusal:
        samples(task_of(tmp_path))
    assert "not as published" not in str(refusal.value)


def test_only_a_table_for_training_is_divided(tmp_path: Path):
    write_pictures(tmp_path, 12)
    text = HEADER + "".join(f"images/{n}.png,What?,x\n" for n in range(12))
    for name, expected in (("test", [0, 0, 12]), ("val", [0, 12, 0])):
        path = tmp_path / f"{name}.csv"
        path.write_text(text)
        assert sizes(task_of(tmp_path)) == expected
        path.unlink()
    (tmp_path / "eval.csv").write_text(text)
    with pytest.raises(
        DataError, match=r"eval\.csv is the only table: name it train, val.* or test"
    ):
        sizes(task_of(tmp_path))
    (tmp_path / "train.csv").write_text(text)
    task = task_of(tmp_path)
    assert sum(sizes(task)) == 12
    assert task.data_set.tables.unused == (tmp_path / "eval.csv",)


@pytest.mark.parametrize(
    ("name", "text", "both"),
    [
        ("train.csv", "image,question,question,answers\n0.png,a,b,c\n", "question and question"),
        ("train.csv", "image,question,Answers,answer\n0.png,a,b,c\n", "Answers and answer"),
        ("train.csv", "id,Id,image,question,answer\n1,2,0.png,a,b\n", "id and Id"),
        (
            "train.jsonl",
            '{"image": "0.png", "question": "a", "prompt": "b", "answers": "c"}',
            "question and prompt",
        ),
    ],
)
def test_two_columns_for_one_thing(name: str, text: str, both: str, tmp_path: Path):
    write_pictures(tmp_path, 1)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name} has two columns for \w+, {both}: keep one"):
        sizes(task_of(tmp_path))


def test_an_id_of_zero_is_kept(tmp_path: Path):
    write_pictures(tmp_path, 1)
    row = '{"id": 0, "image": "0.png", "question": "What?", "answers": "x"}'
    (tmp_path / "train.jsonl").write_text(row)
    (sample,) = samples(task_of(tmp_path))
    assert sample.metadata["question_id"] == "0"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("train.json", r"train\.json is not a table: write JSON lines"),
        ("train.csv.zip", r"train\.csv\.zip is not a table: unpack it"),
        ("train.xlsx", r"train\.xlsx is not a table: save it as CSV"),
    ],
)
def test_what_may_be_meant_as_a_table_is_named(name: str, remedy: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"tables found: none; {remedy}"):
        sizes(task_of(tmp_path))


@pytest.mark.parametrize("own_id", ["", "9"])
def test_a_missing_picture_names_its_line(own_id: str, tmp_path: Path):
    write_pictures(tmp_path, 1)
    (tmp_path / "test.csv").write_text(f"id,{HEADER}{own_id},gone.png,What?,x\n")
    with pytest.raises(DataError, match=rf"mine/\w+/0 .*{own_id}.*line 2 of test\.csv.*is missing"):
        samples(task_of(tmp_path))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_tables_that_are_not_utf_8(name: str, encoding: str, tmp_path: Path):
    write_pictures(tmp_path, 1)
    text = f"{HEADER}0.png,Où?,là\n" if name.endswith("csv") else '{"image": "Où.png"}'
    (tmp_path / name).write_text(text, encoding=encoding)
    with pytest.raises(DataError, match=rf"{name}: it is not UTF-8 .*save it as UTF-8") as refusal:
        sizes(task_of(tmp_path))
    assert "download" not in str(refusal.value)

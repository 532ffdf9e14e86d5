"""A user's own data: a folder of pictures and a table per split, without Python."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from envs.spec import DataError
from envs.tasks.registry import build_tasks, check_names, load_tasks
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.config import DataConfig
from tests.envs.vqa.fixtures.pictures import picture, png

ROWS = [(f"images/{n // 2}.png", f"What is number {n}?", f"{n}.50") for n in range(40)]
PAGE = Path(__file__).parents[3] / "docs" / "your_model_and_data.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(23):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(picture(f"own {number}")))
    return tmp_path


def task_of(folder: Path, **settings: Any) -> Any:
    config = DataConfig(own={"mine": folder}, cache=folder / "cache", **settings)
    return load_tasks(["mine"], config)["mine"]


def sizes(task: Any) -> list[int]:
    return [task.num_samples(split) for split in SPLITS]


def as_csv(rows: list[tuple[str, ...]], header: str = "image,question,answers") -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def as_json_lines(rows: list[tuple[str, str, str]]) -> str:
    keys = ("image", "question", "answers")
    return "\n".join(json.dumps(dict(zip(keys, (i, q, [a]), strict=True))) for i, q, a in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.csv", as_csv(ROWS)),
        ("train.jsonl", as_json_lines(ROWS)),
        ("Train.CSV", as_csv(ROWS)),
        ("training.tsv", as_csv(ROWS).replace(",", "\t")),
        ("train.csv", as_csv(ROWS).replace(",", ";")),
        ("train.csv", "\ufeff" + as_csv(ROWS, "File Name,Prompt,Answer")),
        ("tables/train.ndjson", as_json_lines(ROWS) + "\n\n"),
        ("train.csv", as_csv([(image[7:], q, a) for image, q, a in ROWS])),
        ("train.csv", as_csv([(i, q, f'"{a}|about {a}"') for i, q, a in ROWS])),
        ("train.csv", as_csv([(i, f'"{q[:7]}\n{q[7:]}"', a) for i, q, a in ROWS])),
        (
            "train.csv",
            as_csv([(f"id {a}", *r) for r in ROWS for a in r[2:]], "id,image,question,answer"),
        ),
    ],
)
def test_tables_as_people_write_them(name: str, text: str, folder: Path):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (folder / "test.csv").write_text(as_csv([("images/21.png", "What is last?", "this")]))
    task = task_of(folder, validation_share=0.2, styles={"mine": "doc_qa"})
    train, validation, test = sizes(task)
    assert train + validation == 40
    assert validation > 0
    assert test == 1
    for split in SPLITS:
        for index in range(task.num_samples(split)):
            sample = task.sample(split, index)
            assert sample.image.size == (96, 72)
            assert sample.prompt.startswith("doc_qa: What is")
            assert task.score(sample, sample.answers[0].upper()) == 1.0
            assert task.score(sample, "nothing") == 0.0


def test_splits_of_three_two_and_one_table(folder: Path):
    (folder / "everything.csv").write_text(as_csv(ROWS))
    one = task_of(folder)
    assert sum(sizes(one)) == 40
    assert all(size for size in sizes(one))
    assert not one.keys("train") & one.keys("test")
    (folder / "train.csv").write_text(as_csv(ROWS[:30]))
    (folder / "val.csv").write_text(as_csv(ROWS[30:]))
    two = task_of(folder, validation_share=0.0)
    assert sizes(two) == [30, 0, 10], "the held-out table is the test split"
    (folder / "test.csv").write_text(as_csv(ROWS[38:]))
    mixture = build_tasks(["mine"], config=DataConfig(own={"mine": folder}, cache=folder / "c"))
    assert mixture.census()["mine"] == {"train": 30, "validation": 8, "test": 2, "dropped": 2}


def test_metrics_and_styles(folder: Path):
    rows = [("images/1.png", "What is it?", "red|red|red|dark red")]
    (folder / "test.csv").write_text(as_csv(rows))
    for metric, answer, score in (
        ("exact_match", "dark  RED", 1.0),
        ("anls", "dark re", pytest.approx(7 / 8)),
        ("vqa", "dark red.", pytest.approx(1 / 3)),
    ):
        task = task_of(folder, metrics={"mine": metric}, styles={"mine": ""})
        split = next(split for split in SPLITS if task.num_samples(split))
        sample = task.sample(split, 0)
        assert sample.prompt == "What is it?"
        assert task.score(sample, answer) == score


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.csv", "image,answers\na.png,x\n", "line 2 of train.csv has no column question"),
        ("train.csv", "a.png,What?,x\nb.png,What?,y\n", "no column image .found a.png, What., x"),
        ("train.csv", "image,question,answers\n,What?,x\n", "line 2 names no image"),
        ("train.csv", "image,question,answers\n", "it is empty"),
        ("train.csv", "", "it is empty"),
        ("train.jsonl", '{"image": "a.png"\n', "train.jsonl: line 1 is not JSON"),
        ("train.jsonl", "[1, 2]\n", "line 1 is not an object"),
        ("train.jsonl", '{"image": 3, "question": "a", "answers": "b"}', "line 1 names no image"),
        ("rows.txt", "x", r"has no train\.csv or train\.jsonl .tables found: none.*your_model"),
    ],
)
def test_tables_that_cannot_be_read(name: str, text: str, message: str, folder: Path):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message) as refusal:
        sizes(task_of(folder))
    assert "mine" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_two_tables_of_one_split(folder: Path):
    (folder / "train.csv").write_text(as_csv(ROWS))
    (folder / "train.jsonl").write_text(as_json_lines(ROWS))
    with pytest.raises(DataError, match="are both the train split: keep one"):
        sizes(task_of(folder))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("images/1.png", "", "x"), "line 2: its question is ''"),
        (("images/1.png", "What?", ""), "line 2: it has no reference answers"),
        (("images/nowhere.png", "What?", "x"), r"looked for .*/images/nowhere\.png"),
    ],
)
def test_rows_that_cannot_be_used(row: tuple[str, str, str], message: str, folder: Path):
    (folder / "test.csv").write_text(as_csv([row]))
    task = task_of(folder)
    split = next(split for split in SPLITS if task.num_samples(split))
    with pytest.raises(DataError, match=message) as refusal:
        task.sample(split, 0)
    assert f"mine/{split}/0" in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own": {"digits": Path()}}, "own names 'digits': choose another name"),
        ({"own": {"text_vqa": Path()}}, "own names 'text_vqa': choose another name"),
        ({"own": {"My Data": Path()}}, "own names 'My Data': choose another name"),
        ({"own": {"mine": Path("/no/such")}}, "mine: the folder /no/such does not exist"),
        (
            {"own": {"mine": Path()}, "styles": {"yours": "a"}},
            "styles names yours: use some of m",
        ),
        ({"metrics": {"text_vqa": "anls"}}, "metrics names text_vqa: .*worker.data.own"),
        (
            {"own": {"mine": Path()}, "sources": {"mine": "."}},
            "sources names mine: use some of",
        ),
    ],
)
def test_settings(settings: dict[str, Any], message: str):
    config = DataConfig(**settings)
    with pytest.raises(DataError, match=message):
        build_tasks(["mine" if "mine" in config.own else "text_vqa"], config=config)


def test_names_are_known_where_they_are_configured(folder: Path):
    check_names(["mine", "digits"], DataConfig(own={"mine": folder}))
    with pytest.raises(DataError, match="unknown task 'mine'"):
        check_names(["mine"])


def test_the_example_of_the_docs(folder: Path):
    (text,) = re.findall(r"```csv\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name in re.findall(r"images/\S+?\.jpg", text):
        (folder / name).write_bytes(png(picture(name)))
    (folder / "test.csv").write_text(text)
    task = task_of(folder, metrics={"mine": "anls"}, styles={"mine": "doc_qa"})
    found = {
        sample.prompt: sample.answers
        for split in SPLITS
        for sample in (task.sample(split, i) for i in range(task.num_samples(split)))
    }
    assert found == {
        "doc_qa: What is the total?": ("12.50", "$12.50"),
        "doc_qa: Who was paid?": ("Ada's Café",),
    }

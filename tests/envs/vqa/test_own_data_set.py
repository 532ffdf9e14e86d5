"""The example of docs/your_model_and_data.md, as it stands there."""

import json
import re
from pathlib import Path

import pytest

from envs.spec import DataError
from envs.tasks.data_mixture import DataMixture
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.vqa_task import VqaTask
from tests.envs.vqa.fixtures.pictures import picture, png

PAGE = Path(__file__).parents[3] / "docs" / "your_model_and_data.md"


@pytest.fixture
def task(tmp_path):
    block = r"```python\n(# envs/tasks/vqa/receipts.py\n.*?)```"
    (code,) = re.findall(block, PAGE.read_text(), re.DOTALL)
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    for split, count in (("train", 40), ("test", 6)):
        rows = []
        for number in range(count):
            name = f"{split}-{number // 2}.png"
            (tmp_path / name).write_bytes(png(picture(name, (96, 72))))
            question = f"What is number {number}?"
            rows.append({"picture": name, "question": question, "answers": [f"{number}.50"]})
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(sources={"receipts": str(tmp_path)}, validation_share=0.2)
    return VqaTask(names["Receipts"](config), config)


def test_it_is_split_asked_and_scored(task):
    mixture = DataMixture({"receipts": task}, {"receipts": 1.0})
    counts = mixture.census()["receipts"]
    assert counts["train"] + counts["validation"] == 40
    assert counts["validation"] > 0
    assert counts["test"] == 6
    sample = mixture.sample("test", 0)
    number = int(sample.metadata["question_id"])
    assert sample.prompt == f"doc_qa: What is number {number}?"
    assert sample.image.size == (96, 72)
    assert mixture.score(sample, f"{number}.50") == 1
    assert mixture.score(sample, "nothing") == 0


def test_a_missing_picture_is_named(task, tmp_path):
    for path in tmp_path.glob("test-*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"receipts/test/0 .*image is missing .*test-\d\.png"):
        task.sample("test", 0)

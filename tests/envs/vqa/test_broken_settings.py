"""Settings that name what is not there are one DataError that says what is."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from envs.spec import DataError
from envs.tasks import build_tasks
from envs.tasks.vqa.config import DataConfig
from tests.envs.vqa.opening import opened, settings

ST_QA = ("st_qa:original", "text_vqa:original")


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        (
            "text_vqa:parquet",
            {"splits": {"text_vqa/test": "val"}},
            r"text_vqa: split 'val' of .*found test, train, validation.*worker.data.splits",
        ),
        (
            "text_vqa:original",
            {"splits": {"text_vqa/test": "validation"}},
            r"text_vqa: split 'validation' of .*no TextVQA_0.5.1_validation.json",
        ),
        (
            "st_qa:original",
            {"splits": {"st_qa/test": "test"}},
            "st_qa: split 'test' of .*use 'train' or 'held out'",
        ),
        (
            "doc_qa:parquet",
            {"configs": {"doc_qa": "docvqa"}},
            "lacks a configuration of docvqa .found DocVQA, InfographicVQA.*worker.data.configs",
        ),
        (
            "doc_qa:parquet",
            {"configs": {"doc_qa": "InfographicVQA"}, "splits": {}},
            "doc_qa: .*no column docId",
        ),
        (
            "doc_qa:parquet",
            {"configs": {"doc_qa": ""}, "splits": {}},
            "in several configurations .found DocVQA, InfographicVQA",
        ),
        ("okvqa:script", {"splits": {"okvqa/test": "val2014"}}, "found train, validation"),
        ("mmmu:parquet", {"sources": {"mmmu": "/no/such"}}, "mmmu: the folder /no/such does not"),
        ("mmmu:parquet", {"sources": {"mmmu": "./no"}}, "mmmu: the folder ./no does not exist"),
        ("mmmu:parquet", {"sources": {"mmmu": ""}}, "mmmu has no known repository"),
        ("tally_qa:original", {"sources": {}}, "tally_qa has no known repository .*FOLDER"),
        ("st_qa:original", {"held_out_st_qa": 1024}, "14 questions, and 1024 are to be held out"),
    ],
)
def test_what_cannot_be_opened(form: str, changes: dict[str, Any], message: str, root: Path):
    task = opened(root, form, **changes)
    with pytest.raises(DataError, match=message):
        task.sample("test", 0)
    with pytest.raises(DataError, match=message):
        task.num_samples("train")


@pytest.mark.parametrize(
    "form", ["mmmu:parquet", "science_qa_img:parquet", "coco_caption:original"]
)
def test_an_empty_folder(form: str, root: Path, tmp_path: Path):
    name = form.partition(":")[0]
    with pytest.raises(DataError, match=rf"{name}: split '\w+' of {tmp_path}: "):
        opened(root, form, sources={name: str(tmp_path)}).num_samples("test")


@pytest.mark.parametrize(
    ("names", "weights", "config", "message"),
    [
        (["vqa"], {}, {}, "unknown task 'vqa': use some of easy_vqa, .*text_vqa"),
        ([], {}, {}, "no task given"),
        (["st_qa", "st_qa"], {}, {}, "task st_qa is named twice: change its weight"),
        (["st_qa"], {"doc_qa": 1.0}, {}, "a weight for doc_qa, and the tasks are st_qa"),
        (["st_qa", "text_vqa"], {"st_qa": 0.0}, {}, "must be positive"),
        (["st_qa", "text_vqa"], {"st_qa": -1.0}, {}, "must be positive"),
        (["st_qa", "text_vqa"], {"st_qa": float("nan")}, {}, "must be positive"),
        (["st_qa", "text_vqa"], {"st_qa": float("inf")}, {}, "must be positive and finite"),
        (["st_qa"], {}, {"sources": {"stvqa": "."}}, "worker.data.sources names stvqa: use some"),
        (["st_qa"], {}, {"configs": {"okvqa2": "x"}}, "worker.data.configs names okvqa2"),
        (["st_qa"], {}, {"images": {"coco": Path()}}, "worker.data.images names coco"),
        (["st_qa"], {}, {"splits": {"st_qa/val": "x"}}, "splits names st_qa/val: .*st_qa/valida"),
        (["st_qa"], {}, {"splits": {"st_qa": "x"}}, "worker.data.splits names st_qa: use some of"),
    ],
)
def test_names_and_weights(
    names: list[str], weights: dict[str, float], config: dict[str, Any], message: str, root: Path
):
    with pytest.raises(DataError, match=message):
        build_tasks(names, weights, settings(root, *ST_QA, **config))


@pytest.mark.parametrize(("split", "index"), [("train", -1), ("dev", 0), ("", 0)])
def test_samples_that_do_not_exist(split: str, index: int, root: Path):
    task = opened(root, "st_qa:original")
    with pytest.raises(DataError, match=r"index must not be negative|unknown split"):
        task.sample(split, index)


@pytest.mark.parametrize("split", ["dev", "val", ""])
def test_splits_that_do_not_exist(split: str, root: Path):
    task = opened(root, "st_qa:original")
    for use in (task.num_samples, task.keys, lambda name: task.drop_pictures(name, ())):
        with pytest.raises(DataError, match=r"unknown split .*train, validation, test"):
            use(split)


def test_splits_that_are_taken_away(root: Path):
    task = opened(root, "text_vqa:original", splits={"text_vqa/test": ""})
    assert task.num_samples("train") == 9
    with pytest.raises(DataError, match="text_vqa has no test split with answers"):
        task.sample("test", 0)
    with pytest.raises(DataError, match="text_vqa has no validation split"):
        task.sample("validation", 0)


@pytest.mark.parametrize("error", [ConnectionError("offline\nsecond line"), ValueError(), OSError])
def test_a_hub_that_does_not_answer(error: Exception, monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*_arguments: Any, **_options: Any):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as refusal:
        build_tasks(["doc_qa"], config=DataConfig())
    text = str(refusal.value)
    start = "doc_qa: split 'validation' of lmms-lab-encoder/DocVQA or lmms-lab/DocVQA: "
    assert text.startswith(start)
    for name in ("lmms-lab-encoder/DocVQA", "lmms-lab/DocVQA"):
        assert f"{name} (DocVQA) cannot be loaded" in text
    assert "HF_TOKEN" in text
    assert "name a folder in worker.data.sources" in text
    assert "\n" not in text


def test_the_library_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"text_vqa: .*pip install 'latency-budget-grpo\[data\]'"):
        opened(root, "text_vqa:parquet").num_samples("train")
    assert opened(root, "text_vqa:original").num_samples("train") == 9, "JSON does without it"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_share": -0.1}, "validation_share is -0.1"),
        ({"validation_share": 0.6}, "at most 0.5"),
        ({"held_out_st_qa": 0}, "held_out_st_qa is 0"),
    ],
)
def test_shares(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)

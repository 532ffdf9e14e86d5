"""A first run, without any setting: the default repositories of the hub, as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from envs.spec import DataError
from envs.tasks.registry import DATA_SETS, load_tasks
from envs.tasks.scene import SPLITS
from envs.tasks.vqa.config import DataConfig
from tests.envs.vqa.opening import entries

ON_HUB = {data_set.name: data_set.hub_ids for data_set in DATA_SETS if data_set.hub_ids}


def hub_of(root: Path, served: dict[str, str], asked: list[str]) -> Any:
    """A stand-in for `datasets.load_dataset` that serves the fixtures by hub id."""

    def load_dataset(hub_id: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append(hub_id)
        if hub_id not in served:
            raise datasets.exceptions.DatasetNotFoundError(f"{hub_id} doesn't exist on the Hub")
        folder = root / f"{served[hub_id]}:parquet"
        inside = folder / config if config and (folder / config).is_dir() else folder / "data"
        files = sorted(str(path) for path in inside.glob(f"{split}-*.parquet"))
        if config and not inside.is_dir():  # a subject without a fixture
            files = sorted(str(path) for path in folder.glob(f"Pharmacy/{split}-*.parquet"))
            return datasets.Dataset.from_parquet(files).select([])
        table = datasets.Dataset.from_parquet(files)
        name = next((name for name in ("image", "image_1") if name in table.column_names), None)
        return table.cast_column(name, datasets.Image()) if name == "image" else table

    return load_dataset


@pytest.mark.parametrize("place", [0, -1], ids=["present name", "former name"])
@pytest.mark.parametrize("name", ON_HUB)
def test_the_default_repository_opens(
    name: str, place: int, root: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    served = {ON_HUB[name][place]: name}
    monkeypatch.setattr(datasets, "load_dataset", hub_of(root, served, asked))
    task = load_tasks([name], DataConfig())[name]
    sizes = [task.num_samples(split) for split in SPLITS]  # pyright: ignore
    assert sum(sizes) > 2
    assert set(asked) == set(ON_HUB[name][: 1 if place == 0 else None])
    usable = entries(task)  # pyright: ignore
    assert usable
    split, index, _ = next(iter(usable.values()))
    sample = task.sample(split, index)
    assert sample.image is not None
    assert 0 <= task.score(sample, sample.answers[0]) <= 1


def test_both_names_are_named_where_neither_can_be_loaded(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets, "load_dataset", hub_of(root, {}, []))
    with pytest.raises(DataError, match=r"lmms-lab-encoder/VQAv2 .*; .*lmms-lab/VQAv2 .*HF_TOKEN"):
        load_tasks(["coco_2014_vqa"])["coco_2014_vqa"].sample("test", 0)


def test_tally_qa_has_none():
    with pytest.raises(DataError, match=r"tally_qa has no known repository .*FOLDER"):
        load_tasks(["tally_qa"])["tally_qa"].sample("test", 0)

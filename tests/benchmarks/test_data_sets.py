"""The made-up data sets of published size, a thousandth of them."""

from benchmarks.data_sets import NAMES, opened, write_all
from envs.tasks.registry import build_tasks
from envs.tasks.vqa.config import DataConfig


def test_all_nine_are_written_and_open(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_all(tmp_path, 1000)
    sources = {name: str(tmp_path / name) for name in NAMES}
    census = build_tasks(NAMES, config=DataConfig(sources=sources)).census()
    counts = {name: sum(found.values()) for name, found in census.items()}
    assert counts["coco_2014_vqa"] == 443 + 214
    assert counts["mmmu"] == 30 * 35
    assert all(counts.values())


def test_another_process_opens_them(tmp_path):
    write_all(tmp_path, 1000)
    found = opened(["okvqa"], tmp_path, tmp_path.cwd(), tmp_path / "cache")
    seconds, private_mb, _, peak_mb, _, census = found
    assert seconds > 0
    assert 0 < private_mb < peak_mb
    assert sum(census["okvqa"]) == 9 + 5

"""Arrow files that processes share: made once, never seen in part, made again when damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pyarrow as pa
import pytest

from envs.spec import DataError
from envs.tasks.scene import SPLITS
from envs.tasks.vqa import arrow_cache
from envs.tasks.vqa.arrow_cache import ArrowCache, code_key, files_key
from tests.envs.vqa.fixtures import write_original
from tests.envs.vqa.opening import entries, opened

NUMBERS = pa.record_batch({"number": pa.array(range(1000))})

MAKES_SLOWLY = """
import sys, time
from pathlib import Path
import pyarrow as pa
from envs.tasks.vqa.arrow_cache import ArrowCache

def make():
    for start in range(0, 1000, 100):
        print("batch", flush=True)
        yield pa.record_batch({"number": pa.array(range(start, start + 100))})
        time.sleep(float(sys.argv[2]))

table = ArrowCache(folder=Path(sys.argv[1])).table("numbers", ("key",), make)
print("rows", len(table), flush=True)
"""


def never() -> list[pa.RecordBatch]:
    raise AssertionError("it is there already")


def other_process(folder: Path, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKES_SLOWLY, str(folder), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_table_is_made_once_and_mapped(tmp_path: Path):
    cache = ArrowCache(folder=tmp_path / "new" / "folder")
    first = cache.table("numbers", ("a", 1), lambda: [NUMBERS])
    again = cache.table("numbers", ("a", 1), never)
    assert first["number"].to_pylist() == again["number"].to_pylist() == list(range(1000))
    assert cache.table("numbers", ("a", 2), lambda: [NUMBERS.slice(0, 3)]).num_rows == 3
    assert len(list(cache.folder.glob("numbers-*.arrow"))) == 2


def test_mapped_tables_take_no_memory_of_ones_own(tmp_path: Path):
    cache = ArrowCache(folder=tmp_path)
    batch = pa.record_batch({"text": pa.array(["x" * 1000] * 50_000)})
    cache.table("long", (), lambda: [batch])
    before = pa.total_allocated_bytes()
    table = cache.table("long", (), never)
    assert table.nbytes > 50_000_000
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_two_processes_make_it_once(tmp_path: Path):
    processes = [other_process(tmp_path, 0.05) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(output.endswith("rows 1000\n") for output in outputs)
    assert sum(output.count("batch") for output in outputs) == 10, "the second one waited"
    assert not list(tmp_path.glob("*.part"))


def test_two_processes_without_locks_both_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a file system that has none: each one writes its own file."""

    def no_locks(*_arguments: object, **_options: object) -> None:
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    cache, start, made = ArrowCache(folder=tmp_path), threading.Barrier(2), []

    def make():
        start.wait(timeout=60)
        made.append(1)
        for _ in range(20):
            time.sleep(0.005)
            yield NUMBERS

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(cache.table, "numbers", (), make) for _ in range(2)]
        assert [len(table.result()) for table in found] == [20_000, 20_000]
    assert len(made) == 2
    assert not list(tmp_path.glob("*.part"))


def test_a_process_that_is_killed_half_way_leaves_nothing_in_the_way(tmp_path: Path):
    process = other_process(tmp_path, 0.2)
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "batch\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    process.stdout.close()
    (part,) = tmp_path.glob("*.part")
    assert not list(tmp_path.glob("*.arrow"))
    cache = ArrowCache(folder=tmp_path)
    assert len(cache.table("numbers", ("key",), lambda: [NUMBERS])) == 1000
    assert part.exists(), "its process might still be at work"
    os.utime(part, (0, 0))
    next(tmp_path.glob("*.arrow")).unlink()
    cache.table("numbers", ("key",), lambda: [NUMBERS])
    assert not part.exists()


@pytest.mark.parametrize("keep", [0, 10, 500, -20])
def test_a_damaged_file_is_made_again(keep: int, tmp_path: Path):
    cache = ArrowCache(folder=tmp_path)
    cache.table("numbers", (), lambda: [NUMBERS])
    (path,) = tmp_path.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:keep])
    assert len(cache.table("numbers", (), lambda: [NUMBERS])) == 1000
    assert len(cache.table("numbers", (), never)) == 1000


def test_a_failure_while_it_is_made_leaves_no_file(tmp_path: Path):
    def make():
        yield NUMBERS
        raise DataError("row 1000: wrong")

    cache = ArrowCache(folder=tmp_path)
    with pytest.raises(DataError, match="row 1000: wrong"):
        cache.table("numbers", (), make)
    assert not list(tmp_path.glob("*.arrow")) + list(tmp_path.glob("*.part"))
    assert len(cache.table("numbers", (), lambda: [NUMBERS])) == 1000


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    cache = ArrowCache(folder=tmp_path / "file" / "folder")
    with pytest.raises(DataError, match=r"cannot hold converted data sets .*worker\.data\.cache"):
        cache.table("numbers", (), lambda: [NUMBERS])


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_arguments: object):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arrow_cache, "_write", full)
    with pytest.raises(DataError, match=r"No space left on device.*make room"):
        ArrowCache(folder=tmp_path).table("numbers", (), lambda: [NUMBERS])


def test_a_lock_that_nobody_gives_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrow_cache, "LOCK_TIMEOUT_S", 0.2)
    cache = ArrowCache(folder=tmp_path)
    cache.table("numbers", (), lambda: [NUMBERS])
    (path,) = tmp_path.glob("*.arrow")
    path.unlink()
    with filelock.FileLock(path.with_suffix(".lock")):
        assert len(cache.table("numbers", (), lambda: [NUMBERS])) == 1000


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert ArrowCache.at(tmp_path).folder == tmp_path
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    assert ArrowCache.at(None).folder.parent == tmp_path / "datasets"


def test_keys_of_files_and_code(tmp_path: Path):
    path = tmp_path / "one.json"
    path.write_text("[1]")
    before = files_key([path])
    assert files_key([path]) == before
    path.write_text("[1, 2]")
    assert files_key([path]) != before
    own = tmp_path / "own.py"
    own.write_text("a = 1")
    assert code_key(str(own)) == code_key(str(own))
    assert code_key(str(own)) != code_key(arrow_cache.__file__)
    assert code_key("<string>").startswith(arrow_cache.NEVER_AGAIN)


def test_a_data_set_is_read_again_when_its_file_changes(tmp_path: Path):
    folder = write_original("text_vqa", tmp_path / "data")
    own = {"sources": {"text_vqa": str(folder)}, "cache": tmp_path / "cache"}
    first = opened(tmp_path, "text_vqa:original", **own)
    assert "34602" in entries(first)
    path = folder / "TextVQA_0.5.1_val.json"
    path.write_text(path.read_text().replace("34602", "77777"))
    assert "34602" in entries(first), "what is mapped stays as it was"
    again = opened(tmp_path, "text_vqa:original", **own)
    assert "77777" in entries(again)
    assert "34602" not in entries(again)


def test_a_data_set_is_the_same_from_the_cache(tmp_path: Path):
    folder = write_original("coco_2014_vqa", tmp_path / "data")
    own = {"sources": {"coco_2014_vqa": str(folder)}, "cache": tmp_path / "cache"}
    first, again = (opened(tmp_path, "coco_2014_vqa:original", **own) for _ in range(2))
    assert first.num_samples("train") > 0
    files = sorted((tmp_path / "cache").glob("*.arrow"))
    assert [first.num_samples(split) for split in SPLITS] == [again.num_samples(s) for s in SPLITS]
    assert sorted((tmp_path / "cache").glob("*.arrow")) == files
    for split in SPLITS:
        for index in range(first.num_samples(split)):
            assert first.entry(split, index) == again.entry(split, index)


def test_what_a_killed_process_left_is_removed_though_the_table_is_there(tmp_path: Path):
    cache = ArrowCache(folder=tmp_path)
    cache.table("numbers", ("a",), lambda: [NUMBERS])
    left = tmp_path / f"other-{'0' * 20}.{'0' * 32}.part"
    recent = tmp_path / f"other-{'0' * 20}.{'1' * 32}.part"
    foreign = tmp_path / "download.part"
    for path in (left, recent, foreign):
        path.write_bytes(b"half")
    for path in (left, foreign):
        os.utime(path, (0, 0))
    cache.table("numbers", ("a",), never)
    assert [path.exists() for path in (left, recent, foreign)] == [False, True, True]

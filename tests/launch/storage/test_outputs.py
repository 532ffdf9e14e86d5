"""Places for results: checked before the work, and named when they fill up."""

import errno
import os
from pathlib import Path

import pytest

from launch.run.reporting import Reporter
from launch.storage import run_folder
from launch.storage.outputs import writable_file, writable_folder

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    assert writable_folder(tmp_path / "a" / "b", "--out") == tmp_path / "a" / "b"
    assert writable_file(tmp_path / "c" / "scores.json", "OUT") == tmp_path / "c" / "scores.json"
    assert not list((tmp_path / "a" / "b").iterdir())
    assert not list((tmp_path / "c").iterdir())


def test_a_place_that_cannot_be_written_is_named_with_its_option(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inside", Path("/proc/none")):
        with pytest.raises(ValueError, match=rf"--out {folder} cannot be written to \("):
            writable_folder(folder, "--out")
    with pytest.raises(ValueError, match=r"is a folder: give the name of a file"):
        writable_file(tmp_path, "OUT")


def test_a_full_disk_at_the_start_names_its_folder(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            raise FULL

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(ValueError, match=rf"--out {tmp_path} cannot be written to \(No space left"):
        writable_folder(tmp_path, "--out")


def test_a_disk_that_fills_up_names_the_run_and_the_cure(tmp_path, monkeypatch):
    reporter = Reporter(tmp_path, num_steps=1, clock="test")
    reporter.begin_at(0)

    def full(*_args, **_options):
        raise FULL

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RuntimeError, match=rf"{tmp_path} cannot be written to \(No space .*res"):
        reporter.scalars(0, {"a": 1.0})


def test_two_runs_that_start_in_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _format: "20260102-030405")
    monkeypatch.chdir(tmp_path)
    names = [run_folder.claimed(run_folder.resolve_run_dir("")).name for _ in range(3)]
    assert names == ["20260102-030405", "20260102-030405-2", "20260102-030405-3"]

"""The program that writes a page: where it goes, what runs are called, runs in a store."""

import shutil
import sys

import pytest

from launch import report
from launch.storage.object_store import RunStore
from learner.manifest import step_folders


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
    return report.main()


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    assert report.names_of(["a/one", "b/two/"]) == ["one", "two"]
    assert report.names_of(["a/one", "s3://bucket/b/one"]) == ["a/one", "b/one"]
    with pytest.raises(ValueError, match="named twice"):
        report.names_of(["a/one", "a/../a/one/", "a/one"])


def test_the_page_goes_into_the_run_or_where_it_is_told(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))
    shutil.copytree(finished, tmp_path / "second")
    assert run(monkeypatch, tmp_path / "run") == 0
    assert "<h1>run</h1>" in (tmp_path / "run" / "report.html").read_text()
    out = tmp_path / "new" / "both.html"
    assert run(monkeypatch, tmp_path / "run", tmp_path / "second", "--out", out) == 0
    assert "<h1>run, second</h1>" in out.read_text()
    assert f"report {out}" in capsys.readouterr().out


def test_a_run_in_a_store_is_read_and_not_changed(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    store = RunStore((tmp_path / "store").as_uri(), tmp_path / "run")
    store.mirror(step_folders(tmp_path / "run" / "checkpoints")[-1])
    shutil.rmtree(tmp_path / "run")
    before = sorted((tmp_path / "store").rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, store.uri) == 0
    text = (tmp_path / "report.html").read_text()
    assert "<h1>store</h1>" in text
    assert 'class="missing">There is no' not in text
    assert sorted((tmp_path / "store").rglob("*")) == before


def test_an_empty_store_is_one_clear_error(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds no run: give the --run-dir"):
        run(monkeypatch, (tmp_path / "empty").as_uri(), "--out", tmp_path / "page.html")


def test_no_run_at_all_is_a_usage_error(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch)
    assert "no run is named" in capsys.readouterr().err

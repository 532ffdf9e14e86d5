"""Which commit and which packages a run is made with."""

import subprocess

import pytest

from launch.cluster import versions
from launch.cluster.versions import differences, git_revision, package_versions, python_version


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The project's folder inside another repository, as in a virtual environment there."""
    monkeypatch.delenv("LBG_REVISION", raising=False)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(versions, "ROOT", tmp_path / "site-packages")
    return tmp_path


def test_the_revision_of_a_repository_around_ours_is_not_ours(elsewhere, monkeypatch):
    assert git_revision() == "unknown"
    monkeypatch.setattr(versions, "ROOT", elsewhere)
    assert len(git_revision()) == 40


def test_an_image_or_a_job_states_its_revision(elsewhere, monkeypatch):
    monkeypatch.setenv("LBG_REVISION", "abc123")
    assert git_revision() == "abc123"


def test_differences_name_both_sides_and_ignore_what_is_unknown(monkeypatch):
    monkeypatch.setenv("LBG_REVISION", "new")
    packages = package_versions()
    saved = {"git_revision": "new", "python": python_version(), "packages": packages}
    assert differences(saved) == ""
    saved = {**saved, "git_revision": "old", "packages": {**packages, "torch": "1.0"}}
    assert differences(saved) == f"revision old (now new), torch 1.0 (now {packages['torch'][:12]})"
    assert "revision" not in differences({**saved, "git_revision": "unknown"})

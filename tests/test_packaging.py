"""The wheel: what is in it, and that it works away from the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("envs", "policy", "rollout", "learner", "launch")


def test_everything_names_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    newest = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]


def test_every_program_is_a_console_script():
    programs = {path.stem for path in (ROOT / "launch").glob("*.py")}
    functions = re.findall(r'_run\("(\w+)"\)', (ROOT / "launch" / "scripts.py").read_text())
    assert programs - {"__init__", "scripts", "pretrain_tiny"} == set(functions)
    assert len(PROJECT["scripts"]) == len(functions)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, because setuptools leaves its files where it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", out, source)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of an environment that has this project's needs and the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder)
    (own,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is only searched: an editable install of this project is not found.
    (own / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel)
    return folder / "bin"


def run(*command, cwd="/"):
    """Runs a command that must succeed, without this repository; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"launch/serving/page.html", "launch/run_report/page.css"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_every_console_script_answers_for_help(installed):
    for name in PROJECT["scripts"]:
        assert "usage: " in run(installed / name, "--help"), name


@pytest.mark.slow
def test_the_shipped_controller_answers_and_pages_are_made(installed, tmp_path):
    code = "import launch.serving.page as p; print(p.__file__, len(p.render([], 60.0)) > 1000)"
    file, is_page = run(installed / "python", "-c", code).split()
    assert installed.parent in Path(file).parents
    assert is_page == "True"
    asked = ("--prompt", "chain: 3 plus 4", "--budget-ms", 60, "--json")
    result = json.loads(run(installed / "joint-grpo-generate", *asked))
    assert result["answer"] == "7"
    assert "rollout/embedded/controller" in result["decided_by"]
    run(installed / "joint-grpo-tour", "--num-budgets", 1, "--prices", 0, cwd=tmp_path)
    assert "<style>" in (tmp_path / "tour.html").read_text()

"""What programs write to a file: whole lines, without carriage returns and escape codes."""

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cluster.console import ESCAPE_CODE, one_clear_error, plain
from tests.rollout import rig

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
LONG = "/no/" + "x" * 120
"""A path that does not fit on a line of 80 or 100 characters."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    rig.write_model_folder(path)
    return path


def redirected(folder, script, *arguments, **environment):
    """Exit code and the bytes of both streams."""
    words = [str(a).format(model=folder, out=folder / "out") for a in arguments]
    done = subprocess.run(
        [sys.executable, LAUNCH / script, *words],
        capture_output=True,
        timeout=500,
        check=False,
        cwd="/",
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def here(monkeypatch, capsys, tmp_path):
    """Runs a program in this process; returns its exit code and what it wrote."""

    def run(name, *arguments):
        words = [a.format(out=tmp_path / "out") for a in arguments]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        code = one_clear_error(importlib.import_module(f"launch.{name}").main)
        return code, "".join(capsys.readouterr()).encode()

    return run


def is_plain(content):
    return b"\r" not in content and b"\x1b" not in content


MODEL = ("--worker.model", "{model}", "--worker.executor.max-new-tokens", "2")
QUESTION = ("--prompt", "what", "--budget-ms", "50")


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("joint_grpo.py", ("molmoe-h100", "--print-config")),
        ("joint_grpo.py", ("embedded", "--nonsense", "1")),
        ("generate.py", (*QUESTION, *MODEL)),
        ("block_importance.py", ("{out}.json", "--num-samples", "1", *MODEL)),
        ("evaluate.py", ("/no/run", "--test", "t.npz")),
    ],
)
def test_output_is_plain(folder, script, arguments):
    _, content = redirected(folder, script, *arguments)
    assert content
    assert is_plain(content)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("joint_grpo", ("--worker.model", LONG)),
        ("generate", (*QUESTION, "--controller", LONG)),
        ("evaluate", (LONG, "--test", "t.npz")),
        ("profile_knobs", ("{out}", "--run-dir", LONG)),
        ("block_importance", ("{out}.json", "--worker.model", LONG)),
        ("serve", (LONG,)),
        ("fit_latency_estimator", ("--results_dir", LONG, "--output_dir", "{out}")),
        ("pretrain_tiny", ("--out", "relative" + LONG)),
    ],
)
def test_an_error_is_one_whole_line(here, name, arguments):
    code, content = here(name, *arguments)
    assert code == 1
    assert is_plain(content)
    (line,) = [line for line in content.decode().splitlines() if line.startswith("error: ")]
    assert LONG in line


@pytest.mark.slow
def test_the_error_of_an_actor_is_plain_too(folder, tmp_path):
    rig.write_model_folder(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    arguments = ("--run-dir", tmp_path / "run", "--worker.model", tmp_path)
    code, content = redirected(folder, "joint_grpo.py", *arguments, "--cluster.num-actors", "1")
    assert code == 1
    assert is_plain(content)
    lines = content.decode().splitlines()
    assert any("rollout-0 is given up, it could not be started" in line for line in lines)
    assert lines[-1].startswith("error: ")
    assert "is truncated or no safetensors file" in lines[-1]


@pytest.mark.parametrize(
    ("name", "arguments", "option"),
    [
        ("generate", (*QUESTION, "--image", "s3://b/p.png"), "--image"),
        ("evaluate", ("/run", "--test", "s3://b/t.npz"), "--test"),
        ("block_importance", ("s3://b/o.json",), "--output"),
        ("profile_knobs", ("gs://b/o",), "--output-dir"),
        ("joint_grpo", ("--warm-start-profile", "s3://b/p"), "--warm-start-profile"),
        ("joint_grpo", ("--worker.importance", "s3://b/p"), "--worker.importance"),
        ("serve", ("--token-file", "s3://b/t"), "--token-file"),
        ("pretrain_tiny", ("--out", "s3://b/t"), "out"),
    ],
)
def test_an_option_that_needs_a_local_path_refuses_a_uri(here, name, arguments, option):
    code, content = here(name, *arguments)
    assert code == 1, content
    assert f"{option} " in content.decode()
    assert "is a URI: copy it here and give a local path" in content.decode()


def test_a_traceback_is_shown_on_request(monkeypatch, capsys):
    def fail():
        raise ValueError("\x1b[31mno such\x1b[0m thing")

    assert one_clear_error(fail) == 1
    assert capsys.readouterr().err == "error: no such thing\n"
    monkeypatch.setenv("LBG_DEBUG", "1")
    assert one_clear_error(fail) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "raise ValueError" in shown
    assert shown.endswith("error: no such thing\n")


def test_escape_codes_and_carriage_returns_are_taken_out():
    assert plain("\x1b[36mray::f()\x1b[39m 10 %\r20 %\r\n") == "ray::f() 10 %\n20 %\n"
    assert not ESCAPE_CODE.search("[36m is harmless")
    assert logging.getLogger("httpx").level == logging.WARNING

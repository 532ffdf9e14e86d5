"""generate, importance, profile and evaluate, on the random model."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.answering.answerer import Answerer
from policy.controller import Controller
from rollout.profiling.profile_table import ProfileTable
from tests.rollout import rig

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    rig.write_model_folder(path)
    return path


def run(script, *arguments):
    return subprocess.run(
        [
            sys.executable,
            LAUNCH / script,
            *(a if isinstance(a, bytes) else str(a) for a in arguments),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd="/",
    )


def test_generate_answers_with_choices_and_measured_stages(folder, tmp_path):
    config = rig.controller().config
    Controller(replace(config, price_low=0.01, price_high=2.0, default_price=0.02)).save(tmp_path)
    picture = tmp_path / "picture.png"
    rig.NoiseTask().sample("train", 3).image.save(picture)
    options = ("--worker.model", folder, "--worker.executor.max-new-tokens", 3, "--json")
    question = ("--image", picture, "--prompt", "what is it", "--budget-ms", 50)
    plain = run("generate.py", *question, *options)
    assert plain.returncode == 0, plain.stderr
    result = json.loads(plain.stdout)
    assert "no controller given" in result["decided_by"]
    assert result["choices"] == {"tier": "medium", "position": 1, "top_k": 6, "num_blocks": 14}
    assert result["latency_ms"] == pytest.approx(sum(result["stages_ms"].values()), abs=0.05)
    trained = run("generate.py", *question, *options, "--controller", tmp_path)
    result = json.loads(trained.stdout)
    assert str(tmp_path) in result["decided_by"]
    assert result["stages_ms"]["stage1"] > 0
    assert result["price"] == 0.02
    dear = run("generate.py", *question, *options, "--controller", tmp_path, "--price", 0.5)
    assert json.loads(dear.stdout)["price"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "what", "--budget-ms", "nan"), "positive, finite"),
        (("--prompt", "a", "--budget-ms", "5", "--price", "-1"), "price of time -1.0: give a"),
        (("--prompt", "a", "--budget-ms", "5", "--price", "nan"), "price of time nan: give a"),
        (("--prompt", " ", "--budget-ms", "50"), "error: --prompt is empty"),
        (("--prompt", "a", "--budget-ms", "50", "--image", "/no.png"), "/no.png does not exist"),
        (("--prompt", "a", "--budget-ms", "5", "--controller", "/tmp/no"), "/tmp/no"),
        (("--prompt", b"\xff", "--budget-ms", "5"), "--prompt is not valid UTF-8"),
        (("--prompt", "a", "--budget-ms", "5", "--image", b"/\xff.png"), "does not exist"),
        (("--prompt", "a", "--budget-ms", "5", "--worker.num-threads", "0"), "num_threads is 0"),
        (("--prompt", "a", "--budget-ms", "5", "--worker.num-threads", "100000"), "at most 1024"),
        (("--prompt", "a", "--bugdet-ms", "5"), "did you mean --budget-ms?"),
        (("--prompt", "a", "--budget-ms", "5", "--worker.tasks", "x"), "no option --worker.tasks"),
    ],
)
def test_mistakes_are_one_clear_line(folder, arguments, message):
    done = run("generate.py", *arguments, "--worker.model", folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_prompts_in_the_help_work():
    text = run("generate.py", "--help").stdout
    answerer = Answerer.load()
    for prompt, expected in (("chain: 3 plus 4", "7"), ("recall: what metal of c4", "lead")):
        assert f"--prompt '{prompt}' --budget-ms 60" in text
        assert answerer.answer(prompt, budget_ms=60).text == expected


def test_ctrl_c_while_loading_is_one_line(folder):
    command = [sys.executable, LAUNCH / "generate.py", "--prompt", "a", "--budget-ms", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert "loading" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=300)[1].strip() == "interrupted"
    assert process.returncode == 130


def test_a_reader_that_has_gone_is_no_error():
    readable, writable = os.pipe()
    os.close(readable)
    command = [sys.executable, LAUNCH / "generate.py", "--help"]
    done = subprocess.run(command, stdout=writable, stderr=subprocess.PIPE, timeout=300)
    os.close(writable)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
def test_importance_measures_every_block(folder, tmp_path):
    output = tmp_path / "scores.json"
    done = run(
        *("block_importance.py", output, "--num-samples", 2, "--check"),
        *("--worker.model", folder, "--worker.executor.max-new-tokens", 2),
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(output.read_text())) == {str(i) for i in range(16)}
    assert "by importance" in done.stdout


def profile(folder, output, count):
    """Profiles so many test samples at eight configurations; returns the lines of the samples."""
    done = run(
        *("profile_knobs.py", output, "--split", "test", "--num-samples", count),
        *("--configurations", "corners", "--calibration-samples", 2, *options(folder)),
    )
    assert done.returncode == 0, done.stderr
    return (output / "rows.jsonl").read_text()


def options(folder):
    return (
        *("--worker.model", folder, "--worker.executor.max-new-tokens", 3),
        *("--cluster.num-actors", 1),
    )


@pytest.fixture(scope="module")
def profiled(folder, tmp_path_factory):
    """A profile of twelve samples, and its lines before it was interrupted at the twelfth."""
    output = tmp_path_factory.mktemp("profile")
    rows = profile(folder, output, 11)
    (output / "rows.jsonl").write_text(rows + '{"index": 11, "torn')
    profile(folder, output, 12)
    return output, rows


@pytest.mark.slow
def test_profile_resumes_and_is_read_by_the_estimator(profiled):
    output, rows = profiled
    assert (output / "rows.jsonl").read_text().startswith(rows)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["num_samples"] == 12
    assert len(summary["configurations"]) == 8
    assert (output / "pareto.png").stat().st_size > 1000
    from rollout.profiling.records import ProfileReader

    records = list(ProfileReader(output / "results"))
    assert records
    other = run("profile_knobs.py", output, "--split", "test", "--configurations", "grid")
    assert other.returncode == 1
    assert "use a new folder" in other.stderr


@pytest.mark.slow
def test_evaluation_takes_turns_and_writes_every_policy(folder, profiled, tmp_path):
    test, validation = profiled[0] / "table.npz", tmp_path / "validation.npz"
    # The figures do not matter here: another split's are as good, under its names.
    table = ProfileTable.load(test)
    names = tuple(name.replace("/test/", "/validation/") for name in table.sample_ids)
    replace(table, sample_ids=names).save(validation)
    small = (
        "--groups-per-step",
        2,
        "--group-size",
        3,
        "--evaluation.num-samples",
        1,
        "--evaluation.num-test-samples",
        1,
    )
    budgets = ("--budget.low-ms", 1, "--budget.high-ms", 900)
    budgets += ("--budget.num-samples", 2)
    learned = run(
        "joint_grpo.py",
        *("embedded", "--run-dir", tmp_path / "run", "--steps", 1, *small, *budgets),
        *options(folder),
    )
    assert learned.returncode == 0, learned.stdout + learned.stderr
    tables = ("--validation", validation, "--test", test)
    done = run("evaluate.py", tmp_path / "run", *tables, *options(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "run/evaluation/evaluation.json").read_text())
    assert found["num_samples"] == 12
    found = found["prices"]["0.0"]
    episodes = found["controller_episodes"]
    assert len(set(episodes["sample_ids"])) == 12, "two turns, each with its own samples"
    assert len(found["policies"]["lookup"]["violation"]) == 8
    assert (tmp_path / "run/evaluation/sweep.png").stat().st_size > 1000

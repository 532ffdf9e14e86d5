"""The parts of the lmms-eval model that need no lmms-eval."""

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from envs.spec import CHEAPEST_KNOBS
from launch.answering.answerer import Answer
from launch.answering.lmms_eval_model import AnswerFile, ModelArguments, latency_metrics

ROOT = Path(__file__).resolve().parents[3]


def an_answer(latency_ms=10.0, budget_ms=20.0, text="Löwe"):
    return Answer(
        text=text,
        knobs=CHEAPEST_KNOBS,
        stages_ms={"blocks": latency_ms},
        latency_ms=latency_ms,
        wall_ms=latency_ms,
        host_ms=1.0,
        budget_ms=budget_ms,
        price=0.0,
        finished=True,
        num_output_tokens=2,
        num_prompt_tokens=9,
        clock="cpu",
        decided_by="a test",
    )


def test_arguments_as_the_harness_gives_them():
    given = {"run": "runs/one", "budget_ms": 60, "batch_size": "1", "max_batch_size": None}
    found = ModelArguments.parse({**given, "device": None, "dtype": "bfloat16"})
    assert found == ModelArguments(budget_ms=60.0, run="runs/one", dtype="bfloat16")
    assert found.worker_settings() == {"dtype": "bfloat16"}
    assert ModelArguments.parse({"budget_ms": 0.5, "run": 7}).run == "7"
    assert ModelArguments.parse({"budget_ms": 5, "answers": "a.jsonl"}).answers == Path("a.jsonl")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give --model_args budget_ms=60"),
        ({"budget_ms": "60ms"}, "'60ms' is not a number of milliseconds"),
        ({"budget_ms": True}, "True is not a number"),
        ({"budget_ms": 0}, "positive, finite"),
        ({"budget_ms": float("inf")}, "positive, finite"),
        ({"budget_ms": 60, "bugdet": 1}, "unknown model argument bugdet: use budget_ms, run"),
        ({"budget_ms": 60, "batch_size": 8}, "batch_size 8: latencies are those of one answer"),
    ],
)
def test_unusable_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments.parse(given)


def test_answers_are_written_line_by_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    written = AnswerFile(path)
    for number in range(2):
        written.write({"task": "stvqa", "doc_id": number}, an_answer())
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == number + 1, "complete even if the harness is killed now"
    assert json.loads(lines[1]) == {"task": "stvqa", "doc_id": 1, **an_answer().to_json()}
    assert "Löwe" in lines[0]
    with pytest.raises(ValueError, match="exists: name a new file"):
        AnswerFile(path)
    with pytest.raises(ValueError, match="cannot be written"):
        AnswerFile(tmp_path / "absent" / "answers.jsonl")


def test_latencies_and_violations_are_averaged():
    answers = [an_answer(latency_ms) for latency_ms in (10.0, 20.0, 30.0, 40.0)]
    found = latency_metrics(answers)
    assert found == {
        "num_requests": 4,
        "latency_ms": 25.0,
        "latency_p95_ms": pytest.approx(38.5),
        "over_budget": 0.5,
    }


def test_the_entry_point_names_a_function_that_needs_no_pytorch():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index('[project.entry-points."lmms_eval.models"]')
    name, value = (part.strip(' "') for part in lines[start + 1].split("="))
    manifest = EntryPoint(name=name, value=value, group="lmms_eval.models")
    assert callable(manifest.load())
    code = f"import sys, {manifest.module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_the_harness_answers_a_task_of_local_fixtures(tmp_path):
    if importlib.util.find_spec("lmms_eval") is None:
        pytest.skip(
            "needs lmms-eval in the same environment; see launch/answering/lmms_eval_model.py"
        )
    done = subprocess.run(
        [sys.executable, "-m", "studies.lmms_eval_fixture", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "over_budget" in done.stdout

"""The acceptance run in miniature: it has to work the first time that a GPU is at hand."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import SECTIONS, acceptance
from benchmarks.gpu.dispatches import decode_counts, meta_model, prefill_counts
from benchmarks.gpu.parity import differing_parts
from benchmarks.gpu.plan import Goals, Plan
from benchmarks.gpu.report import Figure, Report
from rollout.latency.clock import WallClock
from rollout.molmoe import MolmoEConfig
from tests.pretended_accelerator import DEVICE
from tests.rollout import rig
from tests.rollout.molmoe.tiny import random_model
from tests.rollout.recorder import Recorder

ROOT = Path(__file__).parents[2]

ABSENT = "ray gymnasium tyro rich tensorboard sklearn scipy rapidfuzz easy_vqa pydantic datasets"
"""Our dependencies that a machine with one GPU may lack."""

RUN = """
import runpy, sys
sys.modules.update(dict.fromkeys({absent!r}.split()))
sys.argv = ["gpu", "--quick", "--out", {out!r}]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_the_command_runs_without_what_a_gpu_machine_may_lack(tmp_path):
    code = RUN.format(absent=ABSENT, out=str(tmp_path))
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["errors"] == {}
    assert list(content["sections"]) == list(SECTIONS)
    assert content["facts"]["runtime"] in ("fixed_shape", "graphs")
    assert run.stdout.strip() == (tmp_path / "gpu.md").read_text().strip()
    assert not list(tmp_path.glob("weights-*")), "the weights are deleted"


def test_it_runs_on_an_accelerator(accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.subject.clock_for", lambda device: WallClock())
    ours = {name: SECTIONS[name] for name in ("float32", "graphs", "hooks", "groups", "memory")}
    monkeypatch.setattr("benchmarks.gpu.__main__.SECTIONS", ours)
    report = acceptance(replace(Plan.miniature(DEVICE), max_new_tokens=3), tmp_path)
    assert report.errors == {}


@pytest.mark.parametrize("misbound", [{(5, 4): (5, 5)}, {(5, 8): (6, 8)}])
def test_a_part_that_is_bound_wrongly_is_found(misbound):
    model = random_model(rig.SIXTEEN)
    assert differing_parts(model, Recorder()) == []
    assert set(differing_parts(model, Recorder(misbound))) >= set(misbound)


def test_a_failing_section_is_reported_and_the_others_run(tmp_path, monkeypatch):
    def broken(subject):
        raise RuntimeError("no\nsuch kernel")

    monkeypatch.setattr(
        "benchmarks.gpu.__main__.SECTIONS",
        {"broken": broken, "fine": lambda subject: [Figure(what="a", value=3.0, unit="ms")]},
    )
    plan = Plan.miniature(torch.device("cpu"))
    report = acceptance(plan, tmp_path)
    assert report.errors == {"broken": "RuntimeError: no such kernel"}
    assert not report.is_good
    assert "| a | 3 ms |  |" in report.table()
    late = acceptance(replace(plan, limit_s=0.0), tmp_path)
    assert late.errors["fine"] == "left out: 0 s have passed"


def test_missed_goals():
    met = Figure(what="met", value=1.0, unit="ms", at_most=Goals().decode_ms)
    missed = replace(met, what="missed", value=float("nan"))
    assert Report(sections={"a": [met]}).is_good
    report = Report(sections={"a": [met, missed]}, seconds={"a": 1.0})
    assert not report.is_good
    assert report.table().count("MISSED") == 1


def test_operations_and_launches_of_a_token_and_a_prefill():
    model = meta_model(MolmoEConfig())
    counts = decode_counts(model, 1300)
    launches = {name: launches for name, (_, launches) in counts.items()}
    assert launches["fixed shape, graphs"] == 18
    assert launches["fixed shape, plain calls"] < 600 < launches["growing cache"]
    prefill = prefill_counts(model, 1217, 13)
    assert prefill["blocks and head"].launching < 1100
    assert prefill["vision and projector"].launching < 500

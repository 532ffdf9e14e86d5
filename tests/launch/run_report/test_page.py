"""The page of one run and of several: what it shows, and what it does without."""

import json
import logging
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from launch.analysis.greedy_sweep import ARRAYS_BY_SAMPLE
from launch.analysis.rivals import ALL_RIVALS
from launch.run_report import page
from launch.run_report.page import render, report_of_finished
from launch.run_report.record import read_run

VOID = {"meta", "link", "img", "br"}


class Balanced(HTMLParser):
    """Fails on an element that is not closed in its place."""

    def __init__(self):
        super().__init__()
        self.open, self.sections, self.missing, self.classes = [], [], [], []

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        assert not str(names.get("src", "")).startswith(("http", "//", "/"))
        assert tag != "script"
        assert tag != "link" or names["href"] == "data:,"
        if tag == "table":
            assert self.classes[-1] == "wide", "a table may be wider than the page"
        if tag not in VOID:
            self.open.append(tag)
            self.classes.append(names.get("class"))
        if tag == "section":
            self.sections.append(names["id"])
        if names.get("class") == "missing":
            self.missing.append(self.sections[-1])

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.classes.pop()


def parsed(text):
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    assert "url(" not in text
    assert "@import" not in text
    assert ".wide { overflow-x: auto;" in text
    return parser


SECTIONS = [
    *("verdict", "against-rivals", "accuracy-device-time-and-price", "learning"),
    *("what-the-controller-chose", "six-answers", "stages-of-an-answer", "machine-and-versions"),
    *("restarts", "configuration", "command"),
]


def test_a_run_ends_with_a_page_that_needs_no_other_file(finished):
    text = (finished / "report.html").read_text()
    found = parsed(text)
    assert found.sections == SECTIONS
    # The rig's latencies are simulated, and so no stage is timed on a device.
    assert set(found.missing) <= {"stages-of-an-answer"}
    for words in ALL_RIVALS.values():
        assert f'<th scope="row">{words}</th>' in text
    assert text.count("<img") == 0, "the rig's task has no samples that can be rendered again"
    assert "resumed 2 times: after step 1 (" in text


def test_figures_are_those_of_the_evaluation(finished):
    saved = json.loads((finished / "evaluation.json").read_text())["prices"]["0.0"]
    inside = np.array(saved["scores"]) * (np.array(saved["latencies_ms"]) <= saved["budgets_ms"])
    text = render([read_run(finished)])
    (shown,) = re.findall(r"controller, price 0: accuracy (\S+) ±", text)
    assert shown == f"{inside.mean():.3f}"
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").open()]
    held_out = [r for r in rows if "time/evaluate_s" in r]
    drawn = re.findall(r"controller after (\d) steps: ([\d.]+)<", text)
    assert drawn == [
        (str(row["step"] + 1), f"{row['at_a_glance/accuracy_held_out']:.3f}") for row in held_out
    ]
    assert len(drawn) == 2


def removed(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def torn(path):
    path.write_text(path.read_text()[: path.stat().st_size // 3])


def written(text):
    return lambda path: path.write_text(text)


EVALUATED = {*SECTIONS[:3], *SECTIONS[4:7]}


@pytest.mark.parametrize(
    ("piece", "damage", "lost"),
    [
        ("evaluation.json", removed, EVALUATED),
        ("evaluation.json", torn, EVALUATED),
        ("evaluation.json", written("[]"), EVALUATED),
        ("evaluation.json", written('{"latency_source": "", "prices": {}}'), EVALUATED),
        ("metrics.jsonl", removed, {"learning"}),
        ("metrics.jsonl", written("nonsense\n"), {"learning"}),
        ("checkpoints", removed, {"six-answers", "restarts", "configuration"}),
        ("starts.jsonl", removed, {"machine-and-versions", "restarts", "command"}),
        ("starts.jsonl", written("{}\n"), {"machine-and-versions", "restarts", "command"}),
    ],
)
def test_a_damaged_piece_costs_its_sections_alone(finished, tmp_path, piece, damage, lost):
    shutil.copytree(finished, tmp_path / "run")
    damage(tmp_path / "run" / piece)
    found = parsed(render([read_run(tmp_path / "run")]))
    assert found.sections == SECTIONS
    assert set(found.missing) - {"stages-of-an-answer"} == lost - {"stages-of-an-answer"}


def test_an_evaluation_of_an_earlier_version_keeps_its_figures(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "evaluation.json"
    saved = json.loads(path.read_text())
    for one in saved["prices"].values():
        for name in ("answers", "stages", "stages_ms", "indices"):
            del one[name]
    path.write_text(json.dumps(saved))
    text = render([read_run(tmp_path / "run")])
    assert set(parsed(text).missing) == {"six-answers", "stages-of-an-answer"}
    assert "written without answers by an earlier version" in text


def test_a_single_sample_has_no_interval(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "evaluation.json"
    saved = json.loads(path.read_text())
    for one in saved["prices"].values():
        one["rivals"] = {}
        for name in (*ARRAYS_BY_SAMPLE, "indices", "tasks", "sample_ids"):
            one[name] = one[name][:1]
    path.write_text(json.dumps(saved))
    text = render([read_run(tmp_path / "run")])
    assert set(parsed(text).missing) <= {"stages-of-an-answer"}
    assert "nan" not in text
    assert "It was compared with nothing" in text


def test_a_folder_that_is_no_run_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a run"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="is not the folder of a run"):
        read_run(tmp_path / "nowhere")


def test_a_failure_is_one_line_and_costs_nothing_else(finished, monkeypatch, caplog):
    def full(_records, _path):
        raise OSError("No space left on device")

    monkeypatch.setattr(page, "write_report", full)
    with caplog.at_level(logging.WARNING):
        assert report_of_finished(finished) is None
    (record,) = caplog.records
    assert "could not be written: OSError: No space left" in record.getMessage()


@pytest.fixture
def other(finished, tmp_path):
    """The same run with all answers of the first sample turned round, and another seed."""
    shutil.copytree(finished, tmp_path / "other")
    path = tmp_path / "other" / "evaluation.json"
    saved = json.loads(path.read_text())
    for one in saved["prices"].values():
        one["scores"] = [[1 - score for score in one["scores"][0]], *one["scores"][1:]]
        for name in ("scores", "latencies_ms", "cheapest_ms", "sample_ids"):
            one[name] = one[name][::-1]
    path.write_text(json.dumps(saved))
    return tmp_path / "other"


def test_runs_are_compared_on_common_samples_by_their_ids(finished, other):
    saved = json.loads((finished / "evaluation.json").read_text())["prices"]["0.0"]
    over = np.array(saved["latencies_ms"]) > saved["budgets_ms"]
    scores = np.array(saved["scores"])
    expected_S = np.zeros(len(scores))
    expected_S[0] = ((2 * scores[0] - 1) * ~over[0]).mean()
    half_width = 1.96 * expected_S.std(ddof=1) / len(scores) ** 0.5
    text = render([read_run(finished), read_run(other)])
    parsed(text)
    assert f"{expected_S.mean():+.3f}\u00a0±\u00a0{half_width:.3f} (price 0)" in text
    assert "All settings are the same." in text
    assert "<title>other, price 0:" in text, "its curve is in the chart"


def test_runs_without_common_samples_or_results_say_so(finished, other, tmp_path):
    path = other / "evaluation.json"
    path.write_text(path.read_text().replace("/test/", "/elsewhere/"))
    shutil.copytree(finished, tmp_path / "half")
    (tmp_path / "half" / "evaluation.json").unlink()
    records = [read_run(finished), read_run(other), read_run(tmp_path / "half")]
    text = render(records)
    found = parsed(text)
    assert "No two runs were evaluated on the same samples." in text
    assert "half: There is no evaluation.json" in text
    assert "paired-differences" in found.missing
    assert "learning" not in found.missing

"""Every study runs through with --quick, and prints what it found.

Two leave out what needs packages that this project does not: `lmms_eval_fixture` the harness, and
`metrics_against_the_field` each metric whose package is absent.
"""

from pathlib import Path

import pytest

import studies
from studies import tier_picture
from tests.quick import run_quick

DEFAULT = {
    "feasibility": "groups misjudged",
    "load_simulation": "price by load, earliest deadline",
    "lmms_eval_fixture": "docvqa_val.yaml",
    "metrics_against_the_field": "",
    "runs_on_a_profile": "lookup by task",
    "tier_picture": "images with digits",
}
SLOW = {
    "image_feature": "prompt alone",
    "latency_token": "12 blocks suffice",
    "outcomes": "mean",
    "table_world": "the controller's lead",
}
"""By program: a part of what it prints."""

LIBRARIES = {"__init__", "known_outcomes", "load_world", "small_run", "supervised", "table_run"}


@pytest.mark.parametrize(
    ("name", "printed"),
    [*DEFAULT.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())],
)
def test_it_runs_through(name, printed, monkeypatch, capfd):
    run_quick(f"studies.{name}", monkeypatch)
    assert printed in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("what", ["prompts", "images", "budgets"])
def test_a_table_world_with_something_shuffled(what, monkeypatch, capfd):
    run_quick("studies.table_world", monkeypatch, "--shuffle", what)
    assert "the controller's lead" in capfd.readouterr().out


def test_an_input_that_is_needed_is_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tier_picture"])
    with pytest.raises(ValueError, match="RUN, the folder of a training run, is needed"):
        tier_picture.main()


def test_no_program_is_left_out():
    folder = Path(next(iter(studies.__path__)))
    assert {path.stem for path in folder.glob("*.py")} - LIBRARIES == {*DEFAULT, *SLOW}

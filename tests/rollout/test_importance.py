"""Deterministic block selection."""

import json
import math

import pytest

from envs.spec import NUM_BLOCKS
from rollout.importance import BlockImportance
from tests.reference import FOLDER, needs_reference


def test_all_before_the_position_stay_then_the_most_important():
    importance = BlockImportance(scores=(0.0, 0.1, 0.2, 0.9, 0.8, 0.2))
    assert importance.kept(2, 4) == (0, 1, 3, 4)
    assert importance.kept(2, 5) == (0, 1, 2, 3, 4)
    assert importance.skipped(2, 4) == {2, 5}


def test_first_and_last_may_be_left_out_of_the_file(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"1": 0.5, "2": 0.1}))
    importance = BlockImportance.from_file(path, 4)
    assert importance.kept(1, 3) == (0, 1, 3)
    assert importance.scores[3] == math.inf


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"1": 0.5}, r"blocks \[2\] are missing"),
        ({"1": 0.5, "2": 1, "9": 1}, r"blocks \[9\] are unknown"),
        ({"1": float("nan"), "2": 1}, r"blocks \[1\] are not finite"),
        ({"one": 1}, "map block indices"),
    ],
)
def test_bad_files_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        BlockImportance.from_mapping(scores, 4)


@needs_reference
@pytest.mark.parametrize(
    ("file", "table"),
    [
        ("importance_scores.json", "layer_importance_scores_exp3_recommended"),
        ("importance_scores_middle_blocks.json", "layer_importance_scores"),
    ],
)
def test_selection_of_the_core_experiment(file, table):
    tables = json.loads((FOLDER / "golden" / "tables.json").read_text())
    importance = BlockImportance.from_file(FOLDER / file, 16)
    for count in NUM_BLOCKS:
        expected = tables[f"{table}.core_exp_selection"][str(count)]
        assert importance.kept(1, count) == tuple(expected)

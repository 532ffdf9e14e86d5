"""Deterministic block selection."""

import json
import math
from dataclasses import replace

import pytest

from envs.spec import NUM_BLOCKS
from rollout.block_skipping import SHIPPED_SCORES, BlockImportance
from rollout.molmoe import MolmoEConfig
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: measure the scores with launch/block_importance.py"),
        ("[0.5, 0.1]", "holds a JSON list and not an object"),
        ("{", "is not valid JSON"),
        ('{"1": [2]}', "map block indices to numbers"),
    ],
)
def test_unreadable_files_are_named_once(tmp_path, content, message):
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        BlockImportance.from_file(path, 4)
    assert str(error.value).count(str(path)) == 1


def test_a_models_own_scores_come_first_then_those_of_its_configuration(tmp_path):
    published = MolmoEConfig.from_dict(MolmoEConfig().to_dict())
    shipped = BlockImportance.of_model(published, tmp_path)
    assert len(shipped.scores) == 16
    assert shipped.skipped(1, 12) == {2, 4, 10, 13}
    with pytest.raises(ValueError, match=r"launch/block_importance\.py OUT\.json --worker\.model"):
        BlockImportance.of_model(replace(published, d_model=1024), tmp_path)
    own = {str(index): float(index) for index in range(16)}
    (tmp_path / "importance_scores.json").write_text(json.dumps(own))
    assert BlockImportance.of_model(published, tmp_path).scores == tuple(own.values())


@needs_reference
def test_shipped_scores_are_the_measured_ones():
    config = MolmoEConfig.from_folder(FOLDER / "molmoe-1b")
    measured = json.loads((FOLDER / "importance_scores.json").read_text())
    assert json.loads(SHIPPED_SCORES[config].read_text()) == measured


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

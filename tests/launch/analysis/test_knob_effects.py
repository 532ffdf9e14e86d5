"""Effects of the knobs against numbers worked out by hand."""

import numpy as np
import pytest
from rich.console import Console

from envs.spec import FULL_KNOBS, Knobs, Tier
from launch.analysis.knob_effects import CUTS, best_by_task_table, effects_table, knob_effects
from rollout.profiling.profile_table import ProfileTable


def record(knobs, task, score, prefill_ms):
    return {
        "task": task,
        "tier": knobs.tier.name.lower(),
        "insertion_position": knobs.position,
        "top_k": knobs.top_k,
        "num_active_blocks": knobs.num_blocks,
        "score": score,
        "T_vision_total": 10.0,
        "T_LLM_prefill": prefill_ms,
        "T_LLM_decode": 2.0,
    }


def rows_of(scores_by_sample):
    knobs = (FULL_KNOBS, *CUTS.values())
    return [
        {
            "records": [
                record(k, task, score, 38.0 if k == FULL_KNOBS else 18.0)
                for k, score in zip(knobs, scores, strict=True)
            ]
        }
        for task, scores in scores_by_sample
    ]


def test_differences_are_paired_by_sample():
    rows = rows_of([("a", (1, 0, 1, 1, 0)), ("a", (1, 1, 1, 0, 0)), ("b", (0, 1, 0, 0, 0))])
    effects = knob_effects(rows)
    assert effects.cuts == ("low tier", "top-k 4", "12 blocks", "cheapest")
    assert [interval.mean for interval in effects.lost["a"]] == [0.5, 0.0, 0.5, 1.0]
    assert effects.lost["mixture"][0].mean == pytest.approx(0.0)
    assert effects.lost["mixture"][0].half_width == pytest.approx(1.96 * 1 / 3**0.5)
    assert effects.language_model_share == [0.5] * 4
    assert effects.latency_share == [0.6] * 4
    count, accuracy = effects.full["mixture"]
    assert count == 3
    assert accuracy.mean == pytest.approx(2 / 3)
    assert accuracy.half_width == pytest.approx(1.96 / 3)
    assert np.isnan(effects.lost["b"][0].half_width), "one sample has no interval"


def test_a_profile_without_the_corners_has_no_effects():
    rows = rows_of([("a", (1, 0, 1, 1, 0))])
    rows[0]["records"].pop()
    assert knob_effects(rows) is None


def test_tables_name_tasks_and_the_fastest_of_equals(capsys):
    knobs = (FULL_KNOBS, *CUTS.values())
    table = ProfileTable(
        configurations=knobs,
        sample_ids=("1", "2"),
        tasks=("a", "b"),
        prompts=("x", "y"),
        scores=np.array([[1, 1, 1, 1, 1], [1, 0, 0, 1, 0]], np.float32),
        latencies_ms=np.array([[50, 30, 40, 35, 10]] * 2, np.float32),
        cheapest_ms=np.array([10, 10], np.float32),
    )
    console = Console(width=160)
    console.print(best_by_task_table(table))
    console.print(effects_table(knob_effects(rows_of([("a", (1, 0, 1, 1, 0))] * 2))))
    shown = capsys.readouterr().out
    cheapest = Knobs(tier=Tier.LOW, position=1, top_k=4, num_blocks=12)
    line_a = next(line for line in shown.splitlines() if " a " in line)
    assert line_a.count(str(cheapest)) == 3
    assert "high-p1-k8-b12 (1.00)" in shown
    assert "x 0.50" in shown
    assert "1.000 ± 0.000" in shown

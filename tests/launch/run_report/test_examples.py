"""Examples: which samples, and their pictures rendered again."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from envs.spec import FULL_KNOBS
from envs.tasks import build_tasks
from launch.analysis.greedy_sweep import STAGES, GreedySweep
from launch.run_report.examples import card, examples, first_of_each, judged
from launch.run_report.markup import bars

MIXTURE = build_tasks()
WORKER = {"tasks": list(MIXTURE.tasks)}


@pytest.fixture(scope="module")
def sweep():
    samples = [MIXTURE.sample("test", index) for index in range(30)]
    shape = (len(samples), 3)
    return GreedySweep(
        budgets_ms=np.array([40.0, 60.0, 80.0]),
        scores=np.ones(shape),
        latencies_ms=np.full(shape, 50.0),
        device_budgets_ms=np.ones(shape),
        device_ms=np.ones(shape),
        wall_ms=np.ones(shape),
        cheapest_ms=np.ones(shape),
        actions=np.tile(FULL_KNOBS.indices(), (*shape, 1)),
        answers=np.array([[s.answers[0]] * 3 for s in samples]),
        stages_ms=np.ones((*shape, len(STAGES))),
        indices=tuple(range(len(samples))),
        tasks=tuple(s.task for s in samples),
        sample_ids=tuple(s.id for s in samples),
    )


def test_each_task_comes_before_a_second_sample_of_one():
    assert first_of_each(["b", "b", "a", "b", "a"], 4) == [2, 0, 4, 1]
    assert first_of_each([], 6) == []


def test_every_task_is_shown_with_the_picture_that_was_asked_about(sweep):
    found = examples(sweep, WORKER)
    assert sorted(one.task for one in found) == sorted(MIXTURE.tasks)
    assert [one.budget_ms for one in found] == [40, 40, 40, 60, 60, 80]
    assert [judged(one) for one in found][2:4] == [("bad", "right, but late"), ("good", "right")]
    for one in found:
        assert one.sample is not None
        index = int(one.sample_id.rpartition("/")[2])
        original, shown = MIXTURE.sample("test", index), card(one)
        assert original.prompt.split()[-1].replace("'", "&#x27;") in shown
        if original.image is None:
            assert "without a picture" in shown
            continue
        (encoded,) = re.findall(r"base64,([^\"]+)", shown)
        picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
        assert picture.convert("RGB").tobytes() == original.image.convert("RGB").tobytes()


def test_samples_of_data_sets_are_named_and_not_opened(sweep):
    other = replace(sweep, tasks=("text_vqa",) * 30, sample_ids=("text_vqa/test/1",) * 30)
    (first, *_) = examples(other, {"tasks": ["text_vqa"]})
    assert first.sample is None
    assert "text_vqa/test/1" in card(first)
    assert "picture not shown" in card(first)


def test_words_for_a_partial_score(sweep):
    (first, *_) = examples(sweep, WORKER)
    assert judged(replace(first, score=0.6)) == ("bad", "60% right, but late")
    assert judged(replace(first, score=0.0, is_late=False)) == ("bad", "wrong")


def test_answers_cannot_break_the_page(sweep):
    (first, *_) = examples(sweep, WORKER)
    assert "<script>" not in card(replace(first, answer="<script>alert(1)</script>", score=0.5))


def test_bars_are_as_long_as_their_values():
    drawn = bars([("block", [8.0]), ("decode", [2.0])], "ms")
    long, short = map(float, re.findall(r"width:([\d.]+)%", drawn))
    assert long == pytest.approx(4 * short)

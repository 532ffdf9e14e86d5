"""The baselines without looking, by hand."""

import pytest
from PIL import Image

from envs.spec import Sample
from launch.analysis.answer_priors import answer_prior_scores


class Exact:
    def score(self, sample, answer):
        return float(answer in sample.answers)


def sample(number, task, kind, answer):
    image = Image.new("RGB", (4, 4))
    return Sample(
        id=str(number), task=task, image=image, prompt="?", answers=(answer,), metadata=kind
    )


def test_majority_and_chance_by_kind():
    shape, color = {"kind": "shape"}, {"kind": "color"}
    samples = [
        sample(0, "a", shape, "square"),
        sample(1, "a", shape, "square"),
        sample(2, "a", shape, "circle"),
        sample(3, "a", color, "red"),
        sample(4, "b", {}, "red"),
        sample(5, "b", {}, "blue"),
        sample(6, "b", {}, "blue"),
        sample(7, "b", {}, "green"),
    ]
    scores = answer_prior_scores(Exact(), samples)
    assert scores["majority"].tolist() == [1, 1, 0, 1, 0, 1, 1, 0]
    assert scores["chance"] == pytest.approx([1 / 2] * 3 + [1] + [1 / 3] * 4)

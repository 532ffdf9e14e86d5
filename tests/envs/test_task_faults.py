"""Whatever goes wrong in a user's task names the sample and the line of code."""

from pathlib import Path

import pytest

from envs.faults import code_line
from envs.spec import DataError, Sample
from envs.tasks.data_mixture import DataMixture
from envs.tasks.mixture import Mixture


class Broken:
    """A task of a user, with a mistake in it."""

    name = "broken"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def sample(self, split: str, index: int) -> Sample:
        if isinstance(self.error, KeyError):
            return {}["answers"]
        raise self.error

    def score(self, sample: Sample, answer: str) -> float:
        return 0.0


@pytest.mark.parametrize("mixture", [Mixture, DataMixture])
@pytest.mark.parametrize(
    "error",
    [KeyError("answers"), RuntimeError("no"), OSError(5, "broken disk"), ZeroDivisionError()],
)
def test_an_error_of_a_task_names_sample_and_line(mixture: type[Mixture], error: Exception):
    tasks = mixture({"broken": Broken(error)}, {"broken": 1.0})
    line = f"{Path(__file__).name} line \\d+"
    kind = type(error).__name__
    with pytest.raises(DataError, match=rf"sample broken/train/7: {kind}: .*\({line}\)") as caught:
        tasks.sample("train", 7)
    assert caught.value.__cause__ is not None


def test_an_unusable_sample_keeps_its_own_words():
    error = DataError("sample broken/train/7: take it out")
    with pytest.raises(DataError) as caught:
        Mixture({"broken": Broken(error)}, {"broken": 1.0}).sample("train", 7)
    assert caught.value is error


def test_the_innermost_line_is_named():
    with pytest.raises(DataError) as caught:
        Broken(DataError("x")).sample("train", 0)
    assert code_line(caught.value).startswith(f"{Path(__file__).name} line ")
    assert code_line(KeyError("never raised")) == "no line"

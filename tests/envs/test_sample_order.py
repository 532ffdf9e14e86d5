"""The order of samples: whole epochs without repetition, alone and in mixtures."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from envs.spec import DataError, Sample
from envs.tasks import build_tasks
from envs.tasks.data_mixture import ROUND, DataMixture
from envs.tasks.sample_order import NUM_ORDERS, PLACES, first_index, row_at
from tests.envs.vqa.fixtures import write_original
from tests.envs.vqa.opening import mixed, opened

SIZE = 10_000
PINNED_START = [27178, 11748, 25405]
PINNED_LATER = 32551
FORMS = ("doc_qa:original", "okvqa:original", "tally_qa:original", "text_vqa:original")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order")
    for form in FORMS:
        write_original(form.partition(":")[0], folder / form)
    return folder


def epoch(start: int, *, name: str = "set", split: str = "train", size: int = SIZE) -> list[int]:
    return [row_at(name, split, start + place, size) for place in range(size)]


@pytest.mark.parametrize("start", [0, SIZE, 7 * SIZE, first_index(3), first_index(3) + SIZE])
def test_an_epoch_has_every_row_once(start: int):
    assert sorted(epoch(start)) == list(range(SIZE))


@pytest.mark.parametrize("size", [1, 2, 3, 17])
def test_small_splits_have_whole_epochs_too(size: int):
    for number in range(5):
        rows = epoch(number * size, size=size)
        assert sorted(rows) == list(range(size))


def test_epochs_seeds_splits_and_data_sets_have_orders_of_their_own():
    orders = [
        epoch(0),
        epoch(SIZE),
        epoch(first_index(1)),
        epoch(0, split="test"),
        epoch(0, name="other"),
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            same = sum(a == b for a, b in zip(one, other, strict=True))
            assert same < 20, "two random orders agree at about one place"


def test_seeds_take_different_orders_and_the_last_ones_return():
    firsts = [first_index(seed) for seed in range(NUM_ORDERS)]
    assert len(set(firsts)) == NUM_ORDERS
    assert all(first % PLACES == 0 for first in firsts)
    assert max(firsts) + PLACES - 1 < 2**31
    assert first_index(NUM_ORDERS) == first_index(0) == 0
    assert first_index(-1) == firsts[-1]


def test_the_order_is_the_same_everywhere():
    assert [row_at("text_vqa", "train", place, 34_602) for place in range(3)] == PINNED_START
    index = first_index(5) + 34_602 + 7
    assert row_at("text_vqa", "train", index, 34_602) == PINNED_LATER


@pytest.mark.parametrize(("index", "size"), [(-1, 10), (0, 0), (-(2**40), 10)])
def test_places_that_do_not_exist(index: int, size: int):
    with pytest.raises(ValueError, match=f"set/train has {size} samples and no index {index}"):
        row_at("set", "train", index, size)


@pytest.mark.parametrize("seed", [0, 1, 100])
def test_a_data_set_gives_each_question_once_an_epoch(seed: int, root: Path):
    task = opened(root, "tally_qa:original")
    size, start = task.num_samples("test"), first_index(seed)
    for number in range(4):
        places = range(start + number * size, start + (number + 1) * size)
        ids = [task.entry("test", index).question_id for index in places]
        assert len(set(ids)) == size
    with pytest.raises(DataError, match="tally_qa/test/-1: the index must not be negative"):
        task.entry("test", -1)


WEIGHTS = {"doc_qa": 5.0, "okvqa": 3.0, "tally_qa": 1.5, "text_vqa": 0.5}


def weighted(root: Path, weights: dict[str, float]) -> DataMixture:
    names = {form.partition(":")[0] for form in FORMS}
    forms = [f"{name}:original" for name in weights if name in names]
    tasks = mixed(root, *forms, also=tuple(set(weights) - names)).tasks
    return DataMixture({name: tasks[name] for name in weights}, weights)


def places(mixture: DataMixture, split: str, start: int, count: int) -> list[tuple[str, int]]:
    """(task, its own index) of consecutive indices; no picture is decoded."""
    found: list[tuple[str, int]] = []

    def noting(name: str):
        def sample(_split: str, index: int) -> Sample:
            found.append((name, index))
            return Sample(id="", task=name, image=None, prompt="", answers=())

        return sample

    with pytest.MonkeyPatch.context() as patch:
        for name, task in mixture.tasks.items():
            patch.setattr(task, "sample", noting(name))
        for index in range(start, start + count):
            assert mixture.sample(split, index).id == f"{found[-1][0]}/{split}/{index}"
    return found


@pytest.mark.parametrize("seed", [0, 9])
def test_every_round_holds_each_data_set_by_its_share(seed: int, root: Path):
    mixture = weighted(root, WEIGHTS)
    rounds = [
        [name for name, _ in places(mixture, "train", first_index(seed) + n * ROUND, ROUND)]
        for n in range(3)
    ]
    for names in rounds:
        assert Counter(names) == {"doc_qa": 500, "okvqa": 300, "tally_qa": 150, "text_vqa": 50}
        assert max(names[i : i + 100].count("okvqa") for i in range(0, ROUND, 100)) < 50
    assert rounds[0] != rounds[1]


def test_shares_that_do_not_divide_a_round_are_as_near_as_can_be(root: Path):
    thirds = weighted(root, {"doc_qa": 1, "okvqa": 1, "text_vqa": 1})
    counts = [
        Counter(name for name, _ in places(thirds, "train", n * ROUND, ROUND)) for n in (0, 5)
    ]
    assert sorted(counts[0].values()) == [333, 333, 334]
    assert counts[0] == counts[1]
    rare = weighted(root, {"doc_qa": 1.0, "okvqa": 1e-9})
    assert Counter(name for name, _ in places(rare, "train", 0, ROUND))["okvqa"] == 1


@pytest.mark.parametrize("seed", [0, 2])
def test_every_data_set_of_a_mixture_passes_through_whole_epochs(seed: int, root: Path):
    mixture = weighted(root, WEIGHTS)
    start = first_index(seed)
    own: dict[str, list[int]] = {name: [] for name in WEIGHTS}
    for name, index in places(mixture, "train", start, 3 * ROUND):
        own[name].append(index)
    for name, indices in own.items():
        assert indices == list(range(start, start + len(indices))), "none left out, none twice"
        task = mixture.data_sets[name]
        size = task.num_samples("train")
        part = task.splits["train"]
        for first in range(0, 5 * size, size):
            rows = [row_at(name, "train", index, size) for index in indices[first : first + size]]
            assert sorted(rows) == list(range(size))
        assert len(part.numbers) == size


def test_sample_ids_lead_back_to_the_same_sample(root: Path):
    mixture = weighted(root, {**WEIGHTS, "digits": 2.0})
    start = first_index(4)
    for split in ("train", "test"):
        seen = set()
        for index in range(start, start + 40):
            try:
                sample = mixture.sample(split, index)
            except DataError:
                continue  # some training pictures are broken on purpose
            name, own_split, place = sample.id.split("/")
            assert name == sample.task
            again = weighted(root, {**WEIGHTS, "digits": 2.0}).sample(own_split, int(place))
            assert again.id == sample.id
            assert again.prompt == sample.prompt
            assert again.answers == sample.answers
            assert again.metadata == sample.metadata
            assert np.array_equal(np.asarray(again.image), np.asarray(sample.image))
            seen.add(sample.id)
        assert len(seen) > 25


def test_embedded_tasks_stand_beside_data_sets(root: Path):
    mixture = weighted(root, {"tally_qa": 1.0, "counting": 1.0, "recall": 2.0})
    names = Counter(name for name, _ in places(mixture, "train", 0, ROUND))
    assert names == {"tally_qa": 250, "counting": 250, "recall": 500}
    assert mixture.num_samples("train") == 8
    assert set(mixture.census()) == {"tally_qa"}
    for index in range(20):
        sample = mixture.sample("test", index)
        assert sample.prompt.startswith(f"{sample.task}: ")
        assert mixture.score(sample, sample.answers[0]) == 1.0
    assert {name for name, _ in places(mixture, "validation", 0, ROUND)} == {"counting", "recall"}


def test_what_a_mixture_refuses(root: Path):
    mixture = weighted(root, {"tally_qa": 1.0, "okvqa": 1.0})
    with pytest.raises(DataError, match="train/-1: the index must not be negative"):
        mixture.sample("train", -1)
    with pytest.raises(DataError, match="none of tally_qa, okvqa has a validation split"):
        mixture.sample("validation", 0)
    with pytest.raises(DataError, match="unknown split 'dev'"):
        mixture.sample("dev", 0)


def test_tasks_that_render_their_samples_take_any_index():
    mixture = build_tasks(["digits"])
    for index in (0, first_index(NUM_ORDERS - 1) + PLACES - 1):
        assert mixture.sample("train", index).id == f"digits/train/{index}"

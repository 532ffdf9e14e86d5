import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from envs.spec import Sample
from envs.tasks import (
    SPLITS,
    WEIGHTS,
    DataError,
    Mixture,
    build_tasks,
    chain,
    counting,
    digits,
    load_tasks,
    reading,
    recall,
    render,
)
from envs.tasks.chain import PERMUTATIONS, apply_step
from envs.tasks.easy_vqa import EasyVqa
from envs.tasks.render import FONTS, HEIGHT, WIDTH, digit_images, font_path
from envs.tasks.wording import templates

NAMES = tuple(WEIGHTS)
WORDINGS = (digits.READ, digits.COUNT, digits.EXISTS, digits.SUM, reading.READ, counting.COUNT)


@pytest.fixture(scope="module")
def tasks():
    return load_tasks()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_sample_is_complete_and_deterministic(tasks, name: str, split: str):
    task = tasks[name]
    for index in range(5):
        sample, again = task.sample(split, index), load_tasks([name])[name].sample(split, index)
        assert isinstance(sample, Sample)
        assert sample.image is not None
        assert (sample.image.size, sample.image.mode) == ((WIDTH, HEIGHT), "RGB")
        assert sample.task == name
        assert sample.answers
        assert (sample.id, sample.prompt, sample.answers) == (again.id, again.prompt, again.answers)
        assert np.array_equal(np.asarray(sample.image), np.asarray(again.image))
        assert task.score(sample, sample.answers[0]) == 1.0
        assert task.score(sample, "nonsense") == 0.0


@pytest.mark.parametrize("name", ["reading", "recall", "chain"])
def test_no_answer_in_prompt_or_id(tasks, name: str):
    for index in range(50):
        sample = tasks[name].sample("test", index)
        if name == "chain":  # its prompt holds digits, but not the one to start from
            assert not any(char.isdigit() for char in sample.prompt.split()[1])
            continue
        assert sample.answers[0] not in sample.prompt
        assert sample.answers[0] not in sample.id.split("/")[-1] or sample.answers[0].isdigit()


@pytest.mark.parametrize(
    ("name", "style"),
    [("easy_vqa", "vqa: ")] + [(name, f"{name}: ") for name in NAMES if name != "easy_vqa"],
)
def test_prompt_names_the_kind_of_question(tasks, name: str, style: str):
    assert all(tasks[name].sample("test", index).prompt.startswith(style) for index in range(20))


def test_difficulty_varies_within_a_task(tasks):
    keys = {
        "digits": "size_px",
        "reading": "size_px",
        "counting": "count",
        "recall": "common",
        "chain": "num_steps",
    }
    for name, key in keys.items():
        values = {tasks[name].sample("test", index).metadata[key] for index in range(60)}
        assert len(values) > (1 if name == "recall" else 4)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(SPLITS, 2)))
def test_splits_share_nothing(first: str, second: str):
    assert not set(FONTS[first]) & set(FONTS[second])
    for wording in (*WORDINGS, recall.ASK):
        assert templates(wording, first)
        assert not set(templates(wording, first)) & set(templates(wording, second))
    pictures = [
        {image.tobytes() for pool in digit_images(split) for image in pool}
        for split in (first, second)
    ]
    assert not pictures[0] & pictures[1]
    rngs = [np.random.default_rng(0), np.random.default_rng(1)]
    for make in (reading.random_word, reading.random_number):
        texts = [
            {make(split, rng) for _ in range(200)}
            for split, rng in zip((first, second), rngs, strict=True)
        ]
        assert not texts[0] & texts[1]
    programs = [
        {chain.random_steps(split, 3, rng) for _ in range(200)}
        for split, rng in zip((first, second), rngs, strict=True)
    ]
    assert not programs[0] & programs[1]


def test_digits_are_the_same_wherever_they_are_read_from(monkeypatch):
    from_file = render._digit_rows()
    monkeypatch.setattr(render, "find_spec", lambda _name: None)
    np.testing.assert_array_equal(render._digit_rows(), from_file)


def test_easy_vqa_splits_share_no_image():
    task = EasyVqa()
    train, validation, test = (set(task._images(split)) for split in SPLITS)
    assert not train & validation
    assert len(train) + len(validation) == 4000
    assert len(test) == 1000  # of another folder
    assert {len(task._questions[split]) > 100 for split in SPLITS} == {True}


def test_held_out_wordings_use_known_words():
    for wording in (*WORDINGS, recall.ASK):
        known = {word for text in templates(wording, "train") for word in text.split()}
        for split in ("validation", "test"):
            assert {w for text in templates(wording, split) for w in text.split()} <= known


def test_chain_by_hand():
    assert [apply_step(s, 7) for s in ("plus 5", "minus 8", "flip", "zig")] == [2, 9, 2, 6]
    assert all(sorted(p) == list(range(10)) for p in PERMUTATIONS.values())
    for index in range(20):
        question = chain.Chain().text_question(np.random.default_rng(index))
        value = int(question.prompt.split()[1])
        steps = question.prompt.split(" ", 2)[2]
        for name, number in zip(steps.split(), [*steps.split()[1:], ""], strict=True):
            if not name.isdigit():
                value = apply_step(f"{name} {number}" if number.isdigit() else name, value)
        assert question.answers == (str(value),)
        end, last = question.trace[-1]
        assert (end, last) == (len(question.prompt), str(value))


def test_mixture_follows_its_weights():
    mixture = build_tasks()
    drawn = [mixture.sample("test", index).task for index in range(400)]
    for name, weight in WEIGHTS.items():
        assert abs(drawn.count(name) / 400 - weight) < 0.08
    sample = mixture.sample("test", 3)
    assert mixture.score(sample, sample.answers[0]) == 1.0
    assert sample.id == mixture.sample("test", 3).id


def test_errors_name_what_is_wrong(tasks):
    with pytest.raises(DataError, match=r"unknown task 'digit'.*digits"):
        load_tasks(["digit"])
    with pytest.raises(DataError, match=r"no task given"):
        load_tasks([])
    with pytest.raises(DataError, match=r"unknown split 'dev'.*validation"):
        tasks["digits"].sample("dev", 0)
    with pytest.raises(DataError, match=r"digits/test/-1"):
        tasks["digits"].sample("test", -1)
    with pytest.raises(DataError, match=r"no weight for digits"):
        Mixture(load_tasks(["digits"]), {"chain": 1.0})
    with pytest.raises(DataError, match=r"positive"):
        Mixture(load_tasks(["digits"]), {"digits": 0.0})
    foreign = build_tasks(["digits"])
    with pytest.raises(DataError, match=r"chain/test/0.*not in the mixture"):
        foreign.score(tasks["chain"].sample("test", 0), "1")


def test_missing_font_is_named(monkeypatch):
    monkeypatch.setitem(FONTS, "test", ("Nowhere.ttf",))
    font_path.cache_clear()
    with pytest.raises(DataError, match=r"Nowhere\.ttf of the test split is missing"):
        font_path("test", 0)
    font_path.cache_clear()


def _data(root: Path, rows: str = '[["is there a circle?", "yes", 0]]') -> Path:
    for folder in ("train", "test"):
        (root / folder / "images").mkdir(parents=True)
        (root / folder / "questions.json").write_text(rows)
    return root


def test_easy_vqa_missing_and_broken_image(tmp_path: Path):
    root = _data(tmp_path / "data")
    with pytest.raises(DataError, match=r"sample easy_vqa/test/0: image .*0\.png is missing"):
        EasyVqa(root).sample("test", 0)
    real = EasyVqa().root / "test" / "images" / "0.png"
    broken = root / "test" / "images" / "0.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"sample easy_vqa/test/0: image .*0\.png is broken"):
        EasyVqa(root).sample("test", 0)
    broken.write_bytes(real.read_bytes()[:60])
    with pytest.raises(DataError, match=r"sample easy_vqa/test/0: image .*0\.png is broken"):
        EasyVqa(root).sample("test", 0)
    shutil.copy(real, broken)
    assert EasyVqa(root).sample("test", 0).answers == ("yes",)


def test_easy_vqa_empty_split_and_broken_questions(tmp_path: Path):
    with pytest.raises(DataError, match=r"the test split of easy_vqa is empty"):
        EasyVqa(_data(tmp_path / "empty", "[]")).sample("test", 0)
    with pytest.raises(DataError, match=r"questions\.json is not valid JSON"):
        EasyVqa(_data(tmp_path / "broken", "[")).sample("test", 0)
    with pytest.raises(DataError, match=r"questions\.json is missing"):
        EasyVqa(tmp_path / "nowhere").sample("test", 0)

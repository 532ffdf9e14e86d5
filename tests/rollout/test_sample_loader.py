"""Samples prepared in threads: the same inputs, errors where they belong, time saved, safety."""

import io
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from envs.spec import TIERS, DataError, Sample
from envs.tasks.registry import load_tasks
from envs.tasks.vqa import vqa_task
from envs.tasks.vqa.config import DataConfig
from envs.tasks.vqa.picture import Picture
from envs.tasks.vqa.vqa_task import VqaTask
from rollout.molmoe import ModelInputs, Preprocessor
from rollout.sample_loader import SampleLoader
from tests.envs.vqa.fixtures import write_original
from tests.envs.vqa.fixtures.odd_pictures import exif_turned_jpeg
from tests.rollout import rig

NUM_THREADS = 4
DELAY_S = 0.1


@pytest.fixture(scope="module")
def preprocessor() -> Preprocessor:
    return Preprocessor(rig.SIXTEEN, rig.tokenizer())


class SlowTask(rig.NoiseTask):
    """Samples that take their time, and are counted."""

    def __init__(self, delay_s: float = DELAY_S) -> None:
        self.delay_s = delay_s
        self.loaded: list[int] = []

    def sample(self, split: str, index: int) -> Sample:
        time.sleep(self.delay_s)
        self.loaded.append(index)
        return super().sample(split, index)


class BrokenTask(rig.NoiseTask):
    """Odd samples are unusable: without a picture file, or with an empty prompt."""

    def sample(self, split: str, index: int) -> Sample:
        if index % 4 == 1:
            raise DataError(f"sample {split}-{index}: its image is missing")
        sample = super().sample(split, index)
        return replace(sample, prompt=" ") if index % 4 == 3 else sample


def assert_equal(one: ModelInputs, other: ModelInputs) -> None:
    for name in ("token_ids", "images", "image_masks", "image_input_idx"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("num_vision_tokens", "num_text_tokens", "tiling"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("num_threads", [1, 2, NUM_THREADS])
def test_prepared_samples_have_the_same_inputs(num_threads: int, preprocessor: Preprocessor):
    ahead = SampleLoader(rig.NoiseTask(), preprocessor, num_threads)
    plain = SampleLoader(rig.NoiseTask(), preprocessor)
    for index in range(2 * num_threads):
        ahead.prepare("train", index)
    for index in range(2 * num_threads + 2):
        one, other = ahead.load("train", index), plain.load("train", index)
        assert one.sample.id == other.sample.id == f"noise/train/{index}"
        assert one.sample.prompt == other.sample.prompt
        for tier in TIERS:
            assert_equal(one.inputs(tier), other.inputs(tier))
            direct = preprocessor(other.sample.image, other.sample.prompt, tier.max_crops)
            assert_equal(one.inputs(tier), direct)
        first, second = one.overview(), other.overview()
        assert first is not None
        assert second is not None
        assert torch.equal(first.crop, second.crop)


def test_inputs_are_made_once(preprocessor: Preprocessor):
    prepared = SampleLoader(rig.NoiseTask(), preprocessor).load("train", 0)
    assert prepared.overview() is prepared.overview()
    for tier in TIERS:
        assert prepared.inputs(tier) is prepared.inputs(tier)


def test_text_alone_has_no_overview(preprocessor: Preprocessor):
    task = rig.NoiseTask()
    text = replace(task.sample("train", 0), image=None)
    task.sample = lambda split, index: text
    loader = SampleLoader(task, preprocessor, 1)
    loader.prepare("train", 0)
    prepared = loader.load("train", 0)
    assert prepared.overview() is None
    assert prepared.inputs(TIERS[0]).images is None


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_unusable_sample_raises_when_it_is_loaded(num_threads: int, preprocessor: Preprocessor):
    loader = SampleLoader(BrokenTask(), preprocessor, num_threads)
    for index in range(4):
        loader.prepare("test", index)
    with pytest.raises(DataError, match="sample test-1: its image is missing"):
        loader.load("test", 1)
    with pytest.raises(DataError, match="sample noise/test/3: the prompt is empty: ask a question"):
        loader.load("test", 3).inputs(TIERS[0])
    assert loader.load("test", 0).sample.id == "noise/test/0"
    assert loader.load("test", 2).sample.id == "noise/test/2"
    with pytest.raises(DataError, match="test-1"):
        loader.load("test", 1)


def test_few_samples_wait_and_those_that_nobody_took_are_never_made(preprocessor: Preprocessor):
    task = SlowTask()
    loader = SampleLoader(task, preprocessor, 2)
    for index in range(50):
        loader.prepare("train", index)
        assert len(loader._pending) <= 4
    started = time.perf_counter()
    for index in (46, 47, 48, 49):
        assert loader.load("train", index).sample.id == f"noise/train/{index}"
    assert time.perf_counter() - started < 25 * DELAY_S, "not behind 48 samples of no use"
    assert len(task.loaded) <= 8
    again = loader.load("train", 0)
    assert again.sample.id == "noise/train/0", "a dropped one is loaded all the same"


def test_preparing_twice_is_preparing_once(preprocessor: Preprocessor):
    task = SlowTask(0.01)
    loader = SampleLoader(task, preprocessor, 2)
    for _ in range(3):
        loader.prepare("train", 5)
    loader.load("train", 5)
    loader.load("train", 5)
    assert task.loaded == [5, 5], "the second load finds nothing prepared"


def test_without_threads_nothing_is_prepared(preprocessor: Preprocessor):
    task = SlowTask(0.0)
    loader = SampleLoader(task, preprocessor)
    loader.prepare("train", 0)
    assert not task.loaded


def test_slow_samples_overlap(preprocessor: Preprocessor):
    def waited_s(num_threads: int) -> float:
        loader = SampleLoader(SlowTask(), preprocessor, num_threads)
        for index in range(8):
            loader.prepare("train", index)
        for index in range(8):
            loader.load("train", index)
        return loader.waited_s

    alone = waited_s(0)
    assert alone > 8 * DELAY_S
    assert waited_s(NUM_THREADS) < alone / 2


def test_many_threads_prepare_and_load_at_once(preprocessor: Preprocessor):
    loader = SampleLoader(rig.NoiseTask(), preprocessor, 3)

    def use(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(30):
            index = rng.randrange(12)
            if rng.random() < 0.6:
                loader.prepare("train", index)
            else:
                assert loader.load("train", index).sample.id == f"noise/train/{index}"

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(use, range(6)))
    assert len(loader._pending) <= 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original("tally_qa", tmp_path_factory.mktemp("tally_qa"))


def fresh(folder: Path) -> VqaTask:
    name = "tally_qa"
    task = load_tasks([name], DataConfig(sources={name: str(folder)}))[name]
    assert isinstance(task, VqaTask)
    return task


def test_a_data_set_is_opened_once_by_many_threads(folder: Path, monkeypatch: pytest.MonkeyPatch):
    opened, real = [], vqa_task.open_splits

    def slowly(*arguments):
        opened.append(threading.get_ident())
        time.sleep(0.05)
        return real(*arguments)

    monkeypatch.setattr(vqa_task, "open_splits", slowly)
    task, start = fresh(folder), threading.Barrier(16)

    def ask(number: int) -> str:
        start.wait()
        return task.sample("test", number).id

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(ask, range(16)))
    assert ids == [f"tally_qa/test/{number}" for number in range(16)]
    assert len(opened) == 1


def test_a_data_set_that_cannot_be_opened_fails_in_every_thread(tmp_path: Path):
    task = fresh(tmp_path)

    def ask(number: int) -> str:
        with pytest.raises(DataError) as refusal:
            task.sample("test", number)
        return str(refusal.value)

    with ThreadPoolExecutor(8) as pool:
        messages = set(pool.map(ask, range(16)))
    assert len(messages) == 1
    assert "has no t" in messages.pop()


def test_samples_of_a_data_set_are_the_same_in_threads(folder: Path, preprocessor: Preprocessor):
    plain, ahead = SampleLoader(fresh(folder), preprocessor), fresh(folder)
    loader = SampleLoader(ahead, preprocessor, NUM_THREADS)
    for index in range(8):
        loader.prepare("test", index)
    for index in range(8):
        one, other = loader.load("test", index), plain.load("test", index)
        assert one.sample.id == other.sample.id
        assert_equal(one.inputs(TIERS[2]), other.inputs(TIERS[2]))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data", "ignore:Truncated File")
def test_damaged_pictures_are_data_errors_or_inputs(preprocessor: Preprocessor):
    """Whatever byte is wrong, in the pixels, the headers or the EXIF tags."""
    whole, rng, outcomes = exif_turned_jpeg("x"), random.Random(1), []

    class DamagedTask(rig.NoiseTask):
        def sample(self, split: str, index: int) -> Sample:
            content = bytearray(whole)
            for _ in range(rng.choice((1, 4))):
                content[rng.randrange(rng.choice((64, len(content))))] = rng.randrange(256)
            image = Picture(content=bytes(content)).open(f"damaged/{split}/{index}")
            return replace(super().sample(split, index), image=image)

    loader = SampleLoader(DamagedTask(), preprocessor)
    for index in range(300):
        try:
            loader.load("train", index).inputs(TIERS[0])
        except DataError:
            outcomes.append("refused")
        else:
            outcomes.append("inputs")
    assert {"refused", "inputs"} == set(outcomes)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_pictures_of_every_mode(mode: str, preprocessor: Preprocessor):
    image = Image.new("L", (40, 30), 90)
    image = Image.new(mode, (40, 30)) if mode == "I;16" else image.convert(mode)
    task = rig.NoiseTask()
    odd = replace(task.sample("train", 0), image=image)
    task.sample = lambda split, index: odd
    inputs = SampleLoader(task, preprocessor).load("train", 0).inputs(TIERS[0])
    assert inputs.images is not None
    assert bool(torch.isfinite(inputs.images).all())


def test_a_lazy_file_that_breaks_later_names_its_sample(preprocessor: Preprocessor):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    task = rig.NoiseTask()
    lazy = Image.open(io.BytesIO(buffer.getvalue()[: len(buffer.getvalue()) // 2]))
    broken = replace(task.sample("train", 7), image=lazy)
    task.sample = lambda split, index: broken
    with pytest.raises(DataError, match=r"sample noise/train/7: .*cannot be decoded"):
        SampleLoader(task, preprocessor).load("train", 7).overview()

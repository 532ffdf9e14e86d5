"""Decoding with a fixed shape gives the growing cache's answers, from the parts that were asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.spec import DataError, Knobs, Tier, all_knobs
from envs.tasks.registry import build_tasks
from rollout.build import build_executor
from rollout.executor import MolmoEExecutor
from rollout.fingerprint import Fingerprint
from rollout.latency.clock import DeviceFacts
from rollout.molmoe import load_model
from rollout.molmoe.static_cache import PlainCalls, capacity_for
from rollout.runtime import EagerRuntime, FixedShapeRuntime, runtime_for
from rollout.worker_config import WorkerConfig
from tests.pretended_accelerator import DEVICE
from tests.rollout import rig
from tests.rollout.recorder import Recorder

EVERY = list(all_knobs())
FULL = Knobs(tier=Tier.LOW, position=1, top_k=8, num_blocks=16)


class Kept:
    """A runtime whose answers are kept as token ids."""

    def __init__(self, runtime):
        self.runtime, self.answers = runtime, []

    def __getattr__(self, name):
        return getattr(self.runtime, name)

    def decode(self, *arguments, **options):
        self.answers.append([])
        for token_id in self.runtime.decode(*arguments, **options):
            self.answers[-1].append(token_id)
            yield token_id


def with_runtime(executor, runtime):
    """The same executor with another runtime."""
    return MolmoEExecutor(
        executor.model,
        executor.preprocessor,
        executor.importance,
        executor.config,
        runtime=Kept(runtime),
    )


def fixed_shape(executor, launcher=None):
    limit = executor.config.max_new_tokens
    return with_runtime(
        executor, FixedShapeRuntime(executor.model, limit, launcher or PlainCalls())
    )


def growing(executor):
    return with_runtime(executor, EagerRuntime(executor.model))


def run(executor, sample, knobs):
    prefix = executor.begin(sample, knobs.tier, None)
    executor.deepen(prefix, knobs.position)
    return executor.advance(prefix, knobs)


def check_same_answers(executors, samples, seed=0):
    """Fails unless both executors give the same tokens at random configurations."""
    rng, texts = np.random.default_rng(seed), set()
    for sample in samples:
        knobs = EVERY[rng.integers(len(EVERY))]
        expected, found = (run(executor, sample, knobs) for executor in executors)
        mine, theirs = (executor.runtime.answers[-1] for executor in executors)
        assert mine == theirs, (sample.id, knobs)
        assert (found.answer, found.finished) == (expected.answer, expected.finished)
        assert list(found.stages_ms) == list(expected.stages_ms)
        texts.add(found.answer)
    assert len(texts) > len(samples) // 4, "the answers depend on the samples"


@pytest.fixture(scope="module")
def embedded():
    executor = build_executor(WorkerConfig())
    return growing(executor), fixed_shape(executor)


def embedded_samples(count):
    tasks = build_tasks(WorkerConfig().tasks)
    return [tasks.sample("test", index) for index in range(count)]


def test_the_same_tokens_as_the_growing_cache(embedded):
    check_same_answers(embedded, embedded_samples(20))


@pytest.mark.slow
def test_the_same_tokens_on_200_samples(embedded):
    check_same_answers(embedded, embedded_samples(200), seed=1)


@pytest.fixture(scope="module")
def recorded():
    return fixed_shape(rig.executor(), Recorder())


def test_parts_run_are_those_of_the_running_blocks(recorded):
    recorder = recorded.runtime.launcher
    rng = np.random.default_rng(2)
    for index in range(50):
        knobs = EVERY[rng.integers(len(EVERY))]
        recorder.ran.clear()
        execution = run(recorded, rig.NoiseTask().sample("train", index % 5), knobs)
        kept = recorded.importance.kept(knobs.position, knobs.num_blocks)
        expected = [(b, 8 if b < knobs.position else knobs.top_k) for b in kept]
        # A step is launched before its predecessor's token is read, but none beyond the limit.
        launched = min(execution.num_output_tokens, recorded.config.max_new_tokens - 1)
        assert recorder.steps() == [expected] * launched, knobs


def test_a_step_that_was_launched_after_the_end_is_not_charged(recorded):
    recorder, model = recorded.runtime.launcher, recorded.model
    for index in range(20):
        sample = rig.NoiseTask().sample("train", index)
        whole = run(recorded, sample, FULL)
        answer = recorded.runtime.answers[-1]
        if len(set(answer[:3])) > 1:
            break
    assert len(answer) == recorded.config.max_new_tokens == 4
    assert [name for name in whole.stages_ms if name.startswith("decode")] == [
        f"decode_{number:02}" for number in (1, 2, 3)
    ]
    last = next(i for i in range(1, 4) if answer[i] not in answer[:i])
    original = model.config
    model.config = replace(original, eos_token_id=answer[last])
    try:
        recorder.ran.clear()
        ended = run(recorded, sample, FULL)
    finally:
        model.config = original
    assert ended.finished
    assert ended.num_output_tokens == last + 1
    assert [name for name in ended.stages_ms if name.startswith("decode")] == [
        f"decode_{number:02}" for number in range(1, last + 1)
    ]
    assert len(recorder.steps()) == min(last + 1, 3)


def test_memory_stays_where_it_is_after_warm_up(recorded):
    decoder = recorded.runtime.decoder
    before = [buffer.data_ptr() for buffer in decoder.buffers()]
    for index, knobs in enumerate(EVERY[::25]):
        run(recorded, rig.NoiseTask().sample("train", index), knobs)
    assert [buffer.data_ptr() for buffer in decoder.buffers()] == before
    assert recorded.runtime.num_bytes == sum(buffer.nbytes for buffer in decoder.buffers())


@pytest.mark.parametrize(
    "misbound", [{(5, 4): (5, 5)}, {(5, 4): (6, 4)}, {(0, 8): (0, 7)}], ids=str
)
def test_a_part_bound_to_another_block_or_top_k_changes_what_is_decoded(misbound):
    executor = rig.executor(max_new_tokens=8)
    knobs = Knobs(tier=Tier.LOW, position=1, top_k=4, num_blocks=16)
    states = []
    for launcher in (Recorder(), Recorder(misbound)):
        wrong = fixed_shape(executor, launcher)
        run(wrong, rig.NoiseTask().sample("train", 1), knobs)
        states.append(wrong.runtime.decoder.x_1D.clone())
    assert not torch.equal(*states)


def test_an_answer_leaves_no_trace_in_the_next(recorded):
    samples = [rig.NoiseTask().sample("train", index) for index in range(3)]
    first = [run(recorded, sample, FULL).answer for sample in samples]
    again = [run(recorded, sample, FULL).answer for sample in reversed(samples)]
    assert again == first[::-1]


def test_on_an_accelerator_the_host_reads_tokens_alone(accelerator, model_folder):
    here = growing(rig.executor())
    model = load_model(model_folder, device=DEVICE)
    there = MolmoEExecutor(
        model,
        here.preprocessor,
        here.importance,
        here.config,
        runtime=Kept(FixedShapeRuntime(model, here.config.max_new_tokens, PlainCalls())),
    )
    addresses = [buffer.values.data_ptr() for buffer in there.runtime.decoder.buffers()]
    for index, knobs in enumerate(EVERY[::80]):
        sample = rig.NoiseTask().sample("train", index)
        expected = run(here, sample, knobs)
        accelerator.reads.clear()
        found = run(there, sample, knobs)
        assert accelerator.reads == there.runtime.answers[-1] == here.runtime.answers[-1]
        assert found.answer == expected.answer
    assert [buffer.values.data_ptr() for buffer in there.runtime.decoder.buffers()] == addresses


def test_the_runtime_follows_from_the_device(monkeypatch):
    executor = rig.executor()
    assert executor.runtime.name == executor.device_facts().runtime == "eager"
    assert isinstance(runtime_for(executor.model, 4), EagerRuntime)
    made = []
    monkeypatch.setattr("rollout.runtime.CudaGraphs", lambda device: f"graphs on {device}")
    monkeypatch.setattr("rollout.runtime.FixedShapeRuntime", lambda *given: made.append(given))
    monkeypatch.setattr(type(executor.model), "device", torch.device("cuda", 0))
    runtime_for(executor.model, 4, 15)
    assert made == [(executor.model, 4, "graphs on cuda:0", 15)]


def test_runtimes_do_not_mix():
    executor = rig.executor()
    prints = [Fingerprint.of(one, rig.NoiseTask()) for one in (executor, fixed_shape(executor))]
    with pytest.raises(ValueError, match=r"\(runtime: eager / fixed_shape\): profile again"):
        prints[0].check_same(prints[1], "the profile", "this fleet", "profile again")


def test_profiles_that_do_not_name_a_runtime_are_eager():
    saved = {"device": "cpu", "dtype": "float32", "torch_version": "2", "num_threads": 1}
    assert DeviceFacts(**saved, clock="wall").runtime == "eager"


def test_a_prompt_beyond_the_capacity_is_the_samples_fault(recorded, monkeypatch):
    monkeypatch.setattr(recorded.runtime.runtime, "max_tokens", 40)
    with pytest.raises(DataError, match="there is room for 40"):
        recorded.begin(rig.NoiseTask().sample("train", 1), Tier.LOW, None)


def test_the_capacity_has_room_for_the_largest_image():
    executor = rig.executor()
    preprocessor = executor.preprocessor
    longest = max(
        len(preprocessor._image_tokens((r, c))[0])
        for r in range(1, 13)
        for c in range(1, 12 // r + 1)
    )
    roomy = replace(executor.model.config, max_position_embeddings=10_000)
    assert capacity_for(roomy, 64) == 1 + longest + 512 + 64
    assert capacity_for(executor.model.config, 64) == 256

"""The budget token as the last row of the prefill: the text's answers and cache stay what they are.

Shapes: T prompt tokens, D d_model.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.spec import CHEAPEST_KNOBS, TIERS, Decoding, Knobs, Sample, Tier, all_knobs
from envs.tasks import WEIGHTS
from rollout.build import build_worker
from rollout.executor import MolmoEExecutor
from rollout.group_sharing import MolmoEGroupSession
from rollout.molmoe.generation import generate
from rollout.prefix import Prefix
from rollout.worker_config import WorkerConfig
from tests.rollout import rig

EVERY = list(all_knobs())
SAMPLE = rig.NoiseTask().sample("train", 1)
TOKEN = np.random.default_rng(0).normal(size=32).astype(np.float32)

ROUNDING = 3e-6
"""Bound in float32 on the difference of a text token's hidden state at the insertion position with
and without the budget token, and of a latency token as a row of the prefill and alone; relative to
the norm of the token's state. The largest on 2,000 samples were 7.6e-7 and 6.4e-7."""


@pytest.fixture(scope="module")
def executor():
    return rig.executor()


def answer_ids(executor: MolmoEExecutor, prefix: Prefix, knobs: Knobs) -> list[int]:
    """The answer's tokens."""
    executor.deepen(prefix, knobs.position)
    ids: list[int] = []
    executor.advance(prefix, knobs, decoding=Decoding(on_token=ids.append))
    return ids


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest relative difference of a row [..., D]."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@dataclass
class Comparison:
    """Runs with and without a budget token; the differences are the largest ones."""

    executor: MolmoEExecutor
    rows: int = 0
    equal_rows: int = 0
    text: float = 0.0
    latency_token: float = 0.0

    def run(self, sample: Sample, knobs: Knobs, token_D: np.ndarray) -> None:
        """Compares one configuration on one sample; fails if the answers' tokens differ."""
        executor, position = self.executor, knobs.position
        prefix = executor.begin(sample, knobs.tier, token_D)
        plain = executor.restart(prefix)
        found = answer_ids(executor, prefix, knobs)
        assert found == answer_ids(executor, plain, knobs), (sample.id, str(knobs))
        found_TD, expected_TD = prefix.hidden[position][0], plain.hidden[position][0]
        self.rows += len(expected_TD)
        self.equal_rows += int((found_TD == expected_TD).all(-1).sum())
        self.text = max(self.text, difference(found_TD, expected_TD))
        (states_PD,) = torch.from_numpy(executor.latency_tokens(prefix, token_D[None]))
        alone = difference(prefix.latency_tokens[position], states_PD[position - 1])
        self.latency_token = max(self.latency_token, alone)

    def check(self) -> None:
        """Fails if hidden states differ by more than rounding."""
        print(
            f"{self.equal_rows} of {self.rows} rows of the text are equal to the bit; largest "
            f"difference {self.text:.1e}, of a latency token {self.latency_token:.1e}"
        )
        assert self.text < ROUNDING
        assert self.latency_token < ROUNDING


def test_answers_are_the_same_with_and_without_the_token(executor):
    rng, task, comparison = np.random.default_rng(0), rig.NoiseTask(), Comparison(executor)
    for number in range(25):
        knobs = EVERY[9 * number + int(rng.integers(9))]
        token_D = rng.normal(size=32).astype(np.float32)
        comparison.run(task.sample("train", number), knobs, token_D)
    comparison.check()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_answers_to_2000_questions_are_the_same_with_and_without_the_token():
    worker = build_worker(WorkerConfig(device="cpu", dtype="float32"))
    rng, comparison, tasks = np.random.default_rng(0), Comparison(worker.executor), set()
    for number in range(2000):
        sample = worker.tasks.sample("validation", number)
        token_D = rng.normal(size=worker.executor.d_model).astype(np.float32)
        comparison.run(sample, EVERY[rng.integers(len(EVERY))], token_D)
        tasks.add(sample.task)
    assert tasks == set(WEIGHTS)
    comparison.check()


@pytest.mark.parametrize("tier", TIERS)
def test_without_the_token_it_is_the_models_own_computation_to_the_bit(executor, tier):
    knobs, model = Knobs(tier=tier, position=3, top_k=8, num_blocks=16), executor.model
    inputs = executor.preprocessor(SAMPLE.image, SAMPLE.prompt, tier.max_crops)
    prefix = executor.begin(SAMPLE, tier, None)
    ids = answer_ids(executor, prefix, knobs)
    cache = model.new_cache(len(inputs.token_ids))
    assert torch.equal(prefix.hidden[3], model.run_blocks(prefix.hidden[0], 0, 3, cache=cache))
    assert prefix.latency_tokens == {}
    assert ids == generate(model, inputs, max_new_tokens=4).token_ids


def test_the_cache_holds_the_text_alone(executor):
    prefix = executor.begin(SAMPLE, Tier.LOW, TOKEN)
    plain = executor.restart(prefix)
    num_tokens = len(prefix.inputs.token_ids)
    for position in (1, 2, 5):
        for each in (prefix, plain):
            executor.deepen(each, position)
        assert prefix.hidden[position].shape == plain.hidden[position].shape
        assert prefix.cache.blocks == plain.cache.blocks == tuple(range(position))
        for block in prefix.cache.blocks:
            assert prefix.cache.length(block) == num_tokens
            for found, expected in zip(
                prefix.cache.block(block).valid(), plain.cache.block(block).valid(), strict=True
            ):
                assert difference(found, expected) < ROUNDING


def test_members_that_leave_earlier_change_nothing(executor):
    at_once = executor.begin(SAMPLE, Tier.LOW, TOKEN)
    in_steps = executor.begin(SAMPLE, Tier.LOW, TOKEN)
    executor.deepen(at_once, 5)
    for position in (1, 3, 5):
        executor.deepen(in_steps, position)
    assert torch.equal(in_steps.hidden[5], at_once.hidden[5])
    assert torch.equal(in_steps.latency_tokens[5], at_once.latency_tokens[5])
    assert set(in_steps.latency_tokens) == {0, 1, 3, 5}
    assert set(in_steps.stages) == set(at_once.stages)


def test_latency_tokens_depend_on_the_token_and_hold_no_other_memory(executor):
    one, other = (executor.begin(SAMPLE, Tier.LOW, token) for token in (TOKEN, -TOKEN))
    for prefix in (one, other):
        executor.deepen(prefix, 2)
    latency_D = one.latency_tokens[2]
    assert difference(latency_D, other.latency_tokens[2]) > 0.1
    assert latency_D.untyped_storage().nbytes() == latency_D.nbytes


@pytest.fixture
def entered(executor):
    """The number of rows that enter block 0, one number for each pass."""
    rows: list[int] = []
    hook = executor.model.blocks[0].register_forward_pre_hook(
        lambda _module, inputs: rows.append(inputs[0].shape[1])
    )
    yield rows
    hook.remove()


def num_prompt_tokens(executor: MolmoEExecutor, tier: Tier) -> int:
    return len(executor.preprocessor(SAMPLE.image, SAMPLE.prompt, tier.max_crops).token_ids)


@pytest.mark.parametrize("token_D", [None, TOKEN], ids=["without", "with"])
def test_the_cheapest_latency_is_that_of_a_prompt_without_the_token(executor, entered, token_D):
    tier, position = CHEAPEST_KNOBS.tier, CHEAPEST_KNOBS.position
    num_tokens = num_prompt_tokens(executor, tier)
    group = MolmoEGroupSession(executor, SAMPLE)
    tokens_GD = group.begin([(tier, position)], token_D)
    assert tokens_GD.shape == (1, 0 if token_D is None else 32)
    group.cheapest_latency_ms()
    prefills = [rows for rows in entered if rows > 1]
    assert prefills == ([num_tokens] if token_D is None else [num_tokens + 1, num_tokens])

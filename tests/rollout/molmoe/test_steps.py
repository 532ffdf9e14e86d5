"""Explicit execution: caches, forks, skips, top_k, generation."""

from itertools import chain, combinations

import pytest
import torch

from rollout.molmoe import generate
from rollout.molmoe.generation import greedy_tokens
from rollout.molmoe.preprocess import ModelInputs
from tests.rollout.molmoe.tiny import TINY, random_model

IDS = torch.tensor([[5, 9, 2, 33, 17, 4, 8]])
ALL_SKIPS = list(chain.from_iterable(combinations(range(4), n) for n in range(5)))


@pytest.fixture(scope="module")
def model():
    return random_model(TINY)


def text_inputs(ids=IDS):
    return ModelInputs(
        token_ids=ids[0],
        images=None,
        image_masks=None,
        image_input_idx=None,
        num_vision_tokens=0,
        num_text_tokens=ids.shape[1],
        tiling=(0, 0),
    )


def test_cached_decode_equals_full_forward(model):
    full = model.forward_logits(text_inputs())
    cache = model.new_cache(7)
    for step in range(7):
        x = model.run_blocks(model.embed(IDS[:, step : step + 1]), 0, 4, cache=cache)
        assert torch.allclose(model.logits(x[0, 0]), full[step], atol=1e-5)


def test_chunked_prefill_equals_full_forward(model):
    full = model.forward_logits(text_inputs())
    cache = model.new_cache(7)
    model.run_blocks(model.embed(IDS[:, :3]), 0, 4, cache=cache)
    x = model.run_blocks(model.embed(IDS[:, 3:]), 0, 4, cache=cache)
    assert torch.allclose(model.logits(x[0]), full[3:], atol=1e-5)


@pytest.mark.parametrize("skipped", ALL_SKIPS)
def test_skipped_blocks_are_identity_and_cost_nothing(model, skipped):
    entered = []
    handles = [
        block.register_forward_pre_hook(lambda m, a, i=i: entered.append(i))
        for i, block in enumerate(model.blocks)
    ]
    cache = model.new_cache(8)
    x = model.run_blocks(model.embed(IDS), 0, 4, cache=cache, skipped=skipped)
    model.run_blocks(model.embed(IDS[:, :1]), 0, 4, cache=cache, skipped=skipped)
    for handle in handles:
        handle.remove()
    kept = [i for i in range(4) if i not in skipped]
    assert entered == kept * 2
    assert cache.blocks == tuple(kept)
    y = model.embed(IDS)
    for index in kept:
        y = model.run_blocks(y, index, index + 1, cache=model.new_cache(7))
    assert torch.equal(x, y)


def test_top_k_does_not_leak_into_the_next_call(model):
    before = model.forward_logits(text_inputs())
    generate(model, text_inputs(), max_new_tokens=3, top_k=1)
    assert torch.equal(model.forward_logits(text_inputs()), before)


def test_every_block_may_have_its_own_top_k(model):
    x = model.embed(IDS)
    together = model.run_blocks(x, 0, 4, cache=model.new_cache(7), top_k=[4, 1, 8, 2])
    for index, k in enumerate([4, 1, 8, 2]):
        x = model.run_blocks(x, index, index + 1, cache=model.new_cache(7), top_k=k)
    assert torch.equal(together, x)


def test_forked_caches_equal_separate_runs(model):
    trunk = model.new_cache(12)
    model.run_blocks(model.embed(IDS), 0, 4, cache=trunk)
    for tail in ([1, 2, 3], [40, 41, 42]):
        fork = trunk.fork(7)
        alone = model.new_cache(12)
        model.run_blocks(model.embed(IDS), 0, 4, cache=alone)
        for token in tail:
            x = model.embed(torch.tensor([[token]]))
            ours = model.run_blocks(x, 0, 4, cache=fork)
            assert torch.equal(ours, model.run_blocks(x, 0, 4, cache=alone))
    assert trunk.length(0) == 7


def test_cache_errors_are_clear(model):
    cache = model.new_cache(7)
    model.run_blocks(model.embed(IDS), 0, 2, cache=cache)
    with pytest.raises(ValueError, match="larger capacity"):
        model.run_blocks(model.embed(IDS), 0, 2, cache=cache)
    with pytest.raises(ValueError, match="it holds 0 tokens"):
        cache.fork(7, blocks=(0, 3))
    with pytest.raises(ValueError, match="cannot truncate"):
        cache.truncate(-1)
    with pytest.raises(ValueError, match="positions"):
        model.run_blocks(torch.zeros(1, 300, 32), 0, 1, cache=model.new_cache(300))


def test_truncate_rewinds(model):
    cache = model.new_cache(9)
    model.run_blocks(model.embed(IDS), 0, 4, cache=cache)
    token = model.embed(IDS[:, :1])
    first = model.run_blocks(token, 0, 4, cache=cache)
    model.run_blocks(token, 0, 4, cache=cache)
    cache.truncate(7)
    assert torch.equal(model.run_blocks(token, 0, 4, cache=cache), first)


def test_a_token_that_is_not_stored_leaves_no_trace(model):
    cache = model.new_cache(8)
    x = model.run_blocks(model.embed(IDS), 0, 4, cache=cache)
    extra = torch.randn(1, 1, 32)
    unstored = model.run_blocks(extra, 0, 4, cache=cache, store=False)
    assert cache.length(3) == 7
    whole = model.run_blocks(
        torch.cat([model.embed(IDS), extra], dim=1), 0, 4, cache=model.new_cache(8)
    )
    assert torch.allclose(unstored, whole[:, -1:], atol=1e-5)
    assert torch.allclose(x, whole[:, :-1], atol=1e-5)


def test_generation_stops_at_eos_and_at_the_limit(model):
    generation = generate(model, text_inputs(), max_new_tokens=5)
    assert len(generation.token_ids) == 5 or generation.finished
    tokens = greedy_tokens(model, torch.tensor([0]), model.new_cache(4), max_new_tokens=4)
    assert list(tokens) == [0]
    with pytest.raises(ValueError, match="at least one"):
        generate(model, text_inputs(), max_new_tokens=0)


def test_bfloat16_runs_and_stays_near(model):
    low = random_model(TINY).to(torch.bfloat16)
    ids = IDS[:, :1]
    ours = low.run_blocks(low.embed(ids), 0, 1, cache=low.new_cache(1), top_k=8)
    exact = model.run_blocks(model.embed(ids), 0, 1, cache=model.new_cache(1), top_k=8)
    assert ours.dtype == torch.bfloat16
    assert torch.allclose(ours.float(), exact, atol=0.2, rtol=0.05)

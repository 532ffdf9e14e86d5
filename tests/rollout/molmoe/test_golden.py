"""Parity with the published code's outputs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from rollout.molmoe import load_model
from rollout.molmoe.generation import greedy_tokens
from rollout.molmoe.static_cache import FixedShapeDecoder, PlainCalls
from tests.reference import FOLDER, needs_reference

pytestmark = needs_reference
GOLDEN = FOLDER / "golden"
TOLERANCE = 2e-5
K4, K1 = [8, 8, 4, 4], [8, 1, 1, 1]
CASES = [
    ("text", "text", None, ()),
    ("image", "image", None, ()),
    ("image_tall", "image_tall", None, ()),
    ("padded", "padded", None, ()),
    ("text_k4", "text", K4, ()),
    ("image_k4", "image", K4, ()),
    ("image_k1", "image", K1, ()),
    ("text_skip2", "text", None, (2,)),
    ("image_skip2", "image", None, (2,)),
    ("image_k4_skip2", "image", K4, (2,)),
    ("image_skip12", "image", None, (1, 2)),
]


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "cases_a.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model_a")
    shutil.copy(GOLDEN / "config_a.json", folder / "config.json")
    shutil.copy(GOLDEN / "model_a.safetensors", folder / "model.safetensors")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 374}))
    return load_model(folder)


def embed(model, golden, prompt):
    ids = golden[f"in.{prompt}.input_ids"]
    images = golden.get(f"in.{prompt}.images")
    if images is None:
        return model.embed(ids)
    vision = model.encode_image(images, golden[f"in.{prompt}.image_masks"])
    return model.embed(ids, vision, golden[f"in.{prompt}.image_input_idx"])


def close(actual, expected, valid=None):
    error = (actual - expected).abs()
    return float((error if valid is None else error[valid]).max()) < TOLERANCE


@pytest.mark.parametrize(("case", "prompt", "top_k", "skipped"), CASES)
def test_hidden_states_logits_cache_and_answer(model, golden, case, prompt, top_k, skipped):
    ids = golden[f"in.{prompt}.input_ids"]
    valid = ids != -1
    mask = valid if prompt == "padded" else None
    cache = model.new_cache(ids.shape[1] + 12, batch=len(ids))
    x = embed(model, golden, prompt)
    options = {"cache": cache, "top_k": top_k, "skipped": skipped}
    for index in range(4):
        x = model.run_blocks(x, index, index + 1, attention_mask_BS=mask, **options)
        assert close(x, golden[f"{case}.block_out.{index}"], valid), index
    if f"{case}.logits" in golden:
        assert close(model.logits(x), golden[f"{case}.logits"], valid)
    assert close(model.ln_f(x), golden[f"{case}.final_norm_out"], valid)
    assert cache.blocks == tuple(i for i in range(4) if i not in skipped)
    for index in (0, 3):
        keys, values = cache.block(index).valid()
        there = valid[:, None, :, None].expand_as(keys)
        assert close(keys, golden[f"{case}.kv.{index}.k"], there)
        assert close(values, golden[f"{case}.kv.{index}.v"], there)
    if prompt != "padded":
        first = model.logits(x[:, -1]).argmax(-1)
        answer = greedy_tokens(model, first, cache, max_new_tokens=12, top_k=top_k, skipped=skipped)
        expected = golden[f"{case}.generated_ids"][0].tolist()
        assert list(answer) == expected[: expected.index(374) + 1 if 374 in expected else 12]


@pytest.fixture(scope="module")
def fixed_shape(model):
    return FixedShapeDecoder(model, (1, 4, 8), 256, PlainCalls())


@pytest.mark.parametrize(
    ("case", "prompt", "top_k", "skipped"), [case for case in CASES if case[1] != "padded"]
)
def test_answers_of_decoding_with_a_fixed_shape(
    model, golden, fixed_shape, case, prompt, top_k, skipped
):
    x = embed(model, golden, prompt)
    cache = fixed_shape.fork(model.new_cache(x.shape[1]), 0, ())
    x = model.run_blocks(x, 0, 4, cache=cache, top_k=top_k, skipped=skipped)
    fixed_shape.start(model.logits(x[:, -1]).argmax(-1), x.shape[1])
    answer = [int(fixed_shape.token_1)]
    for _ in range(11):
        fixed_shape.step([(b, top_k[b] if top_k else 8) for b in range(4) if b not in skipped])
        answer.append(int(fixed_shape.token_1))
    expected = golden[f"{case}.generated_ids"][0].tolist()
    length = expected.index(374) + 1 if 374 in expected else 12
    assert answer[:length] == expected[:length]


@pytest.mark.parametrize("case", ["text", "image", "image_k4", "image_k4_skip2", "padded"])
def test_cached_continuation(model, golden, case):
    prompt = case.split("_")[0]
    ids, steps = golden[f"in.{prompt}.input_ids"], golden[f"{case}.cont_ids"]
    options = {"top_k": K4 if "k4" in case else None, "skipped": (2,) if "skip2" in case else ()}
    cache = model.new_cache(ids.shape[1] + 8, batch=len(ids))
    mask = ids != -1 if prompt == "padded" else None
    x = embed(model, golden, prompt)
    model.run_blocks(x, 0, 4, cache=cache, attention_mask_BS=mask, **options)
    for step in range(8):
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        x = model.embed(steps[:, step : step + 1])
        x = model.run_blocks(x, 0, 4, cache=cache, attention_mask_BS=mask, **options)
        assert close(model.logits(x[:, 0]), golden[f"{case}.cont_logits"][:, step]), step


def test_padded_batch_generates_alike(model, golden):
    ids = golden["in.padded.input_ids"]
    mask = ids != -1
    cache = model.new_cache(ids.shape[1] + 12, batch=len(ids))
    x = model.run_blocks(model.embed(ids), 0, 4, cache=cache, attention_mask_BS=mask)
    tokens = model.logits(x[torch.arange(len(ids)), mask.sum(1) - 1]).argmax(-1)
    answers = [tokens]
    for _ in range(11):
        mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        x = model.embed(answers[-1][:, None])
        x = model.run_blocks(x, 0, 4, cache=cache, attention_mask_BS=mask)
        answers.append(model.logits(x[:, 0]).argmax(-1))
    assert torch.stack(answers, dim=1).tolist() == golden["padded.generated_ids"].tolist()


def test_batched_images_keep_to_their_own_rows(model, golden):
    x = embed(model, golden, "batch2")
    ids = golden["in.batch2.input_ids"]
    mask = ids != -1
    cache = model.new_cache(ids.shape[1], batch=2)
    logits = model.logits(model.run_blocks(x, 0, 4, cache=cache, attention_mask_BS=mask))
    for row, case in enumerate(("image", "image_tall")):
        expected = golden[f"{case}.logits"][0]
        assert close(logits[row, : len(expected)], expected)


def test_vision_tower(model, golden):
    vision = load_file(GOLDEN / "vision_a.safetensors")
    images, masks = golden["in.image.images"], golden["in.image.image_masks"]
    encoder = model.vision.encoder
    selected = encoder.image_vit(images[0])
    padding = (images[0] == -1).flatten(1).all(-1)
    assert close(selected[~padding], vision["vit.selected_features"][0][~padding])
    windows = encoder._windows(torch.zeros(1, 36, 64))
    assert windows.shape == (9, 4, 64)
    pooled = encoder.image_pooling_2d(vision["pool.query"], vision["pool.kv"])
    assert close(pooled, vision["pool.out"])
    tokens = model.encode_image(images, masks)
    assert close(tokens, vision["projector.out"])
    with_image = model.embed(
        golden["in.image.input_ids"], tokens, golden["in.image.image_input_idx"]
    )
    assert close(with_image, vision["embed.with_image"])


@pytest.mark.parametrize("prompt", ["text", "image"])
def test_budget_token_hidden_states(model, golden, prompt):
    budget = load_file(GOLDEN / "budget_a.safetensors")
    x = embed(model, golden, prompt)
    cache = model.new_cache(x.shape[1])
    expected = budget[f"{prompt}.last_hidden_states"]
    matched = []
    for token in budget["tokens"]:
        y, latency_token, errors = x, token[None, None], []
        rows, cache_of_rows = torch.cat([x, latency_token], dim=1), model.new_cache(x.shape[1] + 1)
        cache.truncate(0)
        for index in range(4):
            # One token alone sees what it sees at the end of the whole sequence.
            rows = model.run_blocks(rows, index, index + 1, cache=cache_of_rows)
            y_next = model.run_blocks(y, index, index + 1, cache=cache)
            latency_token = model.run_blocks(
                latency_token, index, index + 1, cache=cache, store=False
            )
            y = y_next
            reference = budget[f"{prompt}.latency_token_after_block.{index + 1}"]
            errors += [float((z[0, -1] - reference).abs().max()) for z in (latency_token, rows)]
        whole = torch.cat([y, latency_token], dim=1)
        matched.append(max(errors) < TOLERANCE and close(model.ln_f(whole), expected))
    assert matched.count(True) == 1

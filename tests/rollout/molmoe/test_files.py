"""Checkpoint files, configs and images that are not as they should be."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs.pixels import MAX_PIXELS, to_rgb
from envs.spec import Tier
from rollout.molmoe import (
    CoveringPreprocessor,
    MolmoE,
    MolmoEConfig,
    Preprocessor,
    load_model,
    save_model,
)
from tests.rollout.molmoe.tiny import TINY, random_model


@pytest.fixture
def folder(tmp_path):
    save_model(random_model(), tmp_path)
    return tmp_path


def tokenizer():
    words = ["<|endoftext|>", "<|padding|>", "<im_start>", "<im_end>", "<im_patch>", "<im_col>"]
    words += ["User", ":", "Assistant", "what", "is", "it", "?"]
    vocabulary = {word: index for index, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.fixture
def preprocessor():
    return Preprocessor(TINY, tokenizer())


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_round_trip_is_exact(tmp_path, max_shard_bytes):
    model = random_model()
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
    again = load_model(tmp_path)
    assert again.config == model.config
    for (name, ours), theirs in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_head_may_be_in_either_place(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.lm_head.weight"] = tensors.pop("lm_head.weight")
    save_file(tensors, path)
    assert torch.equal(load_model(folder).lm_head.weight, random_model().lm_head.weight)
    tensors["lm_head.weight"] = tensors["model.lm_head.weight"].clone()
    save_file(tensors, path)
    with pytest.raises(ValueError, match="twice"):
        load_model(folder)


def test_missing_extra_and_misshapen_tensors_are_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.transformer.ln_f.weight"]
    tensors["surprise"] = torch.zeros(1)
    tensors["lm_head.weight"] = torch.zeros(2, 2)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_model(folder)
    for part in ("missing: model.transformer.ln_f.weight", "unknown: surprise", "(2, 2), not"):
        assert part in str(error.value)


def test_truncated_and_absent_shards_are_named(tmp_path):
    save_model(random_model(), tmp_path, max_shard_bytes=20_000)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{shard.name} is truncated"):
        load_model(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name} is missing"):
        load_model(tmp_path)


def test_index_that_promises_too_much(tmp_path):
    save_model(random_model(), tmp_path, max_shard_bytes=20_000)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks ghost"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_type": "gelu"}, "activation_type = 'gelu'"),
        ({"n_kv_heads": 2}, "n_kv_heads = 2"),
        ({"n_heads": 5}, "does not split"),
        ({"moe_top_k": 99}, "moe_top_k 99"),
        ({"vit_layers": [-9]}, "vit_layers"),
    ],
)
def test_unsupported_config_values_are_named(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_broken_or_incomplete_config_is_named(folder):
    with pytest.raises(ValueError, match="lacks the field 'd_model'"):
        MolmoEConfig.from_dict({"vision_backbone": {}, "mlp_ratio": 1})
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_model(folder)
    with pytest.raises(ValueError, match="is not a folder"):
        load_model(folder / "nowhere")


def test_published_layout_of_the_real_size():
    from tests.reference import FOLDER

    if not FOLDER.is_dir():
        pytest.skip(f"the reference data is not beside the project ({FOLDER})")
    from rollout.molmoe.checkpoint import tensor_slots

    published = json.loads((FOLDER / "molmoe-1b" / "state_dict_shapes.json").read_text())
    shapes = published.get("shapes", published)
    with torch.device("meta"):
        slots = tensor_slots(MolmoE(MolmoEConfig.from_folder(FOLDER / "molmoe-1b")))
    ours = {name: list(slot.shape) for name, slot in slots.items()}
    theirs = {
        name: list(value["shape"] if isinstance(value, dict) else value)
        for name, value in shapes.items()
    }
    assert ours == theirs
    assert len(ours) == 3573
    assert sum(slot.numel() for slot in slots.values()) == 7_221_875_712


MODES = ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "RGB"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(37, 21), (1, 300), (300, 1), (1, 1)])
def test_any_image(preprocessor, mode, size):
    values = np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[1], size[0])
    if mode.startswith("I"):
        image = Image.fromarray(values * 200).convert(mode)
    else:
        image = Image.fromarray((values % 256).astype(np.uint8)).convert(mode)
    inputs = preprocessor(image, "what is it?", max_crops=3)
    assert torch.isfinite(inputs.images).all()
    assert len(inputs.images) == inputs.tiling[0] * inputs.tiling[1] + 1
    covering = CoveringPreprocessor(preprocessor.config, preprocessor.tokenizer)
    filled = covering.at_tier(covering.overview(image), "what is it?", Tier.LOW)
    assert torch.isfinite(filled.images).all()


def test_sixteen_bits_keep_their_contrast():
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    assert np.array_equal(to_rgb(Image.fromarray(values))[0, :, 0], values[0] // 257)


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    import io

    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert to_rgb(Image.open(buffer)).shape == (40, 20, 3)


def test_very_large_images_are_reduced():
    image = Image.new("L", (20_000, 4_000))
    pixels = to_rgb(image)
    assert pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS


def test_broken_images_and_empty_prompts(preprocessor, tmp_path):
    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be decoded"):
        preprocessor(Image.open(path), "what is it?")
    with pytest.raises(ValueError, match="prompt is empty"):
        preprocessor(None, "  ")
    with pytest.raises(ValueError, match="at least one crop"):
        preprocessor(Image.new("RGB", (9, 9)), "what is it?", max_crops=0)


def test_text_only_prompts(preprocessor):
    inputs = preprocessor(None, "what is it?")
    assert inputs.images is None
    assert inputs.num_vision_tokens == 0
    assert inputs.token_ids[0] == TINY.eos_token_id
    assert inputs.text_ids.tolist() == inputs.token_ids[1:].tolist()
    assert random_model().forward_logits(inputs).shape == (len(inputs.token_ids), 64)


def test_tokenizer_without_image_tokens_is_refused(tmp_path):
    inner = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="lacks <im_start>"):
        Preprocessor(TINY, PreTrainedTokenizerFast(tokenizer_object=inner))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is not a tokenizer file"):
        Preprocessor.from_pretrained(tmp_path)


def test_image_answer_depends_on_the_image(preprocessor):
    model = random_model(replace(TINY))
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    with_noise = model.forward_logits(preprocessor(Image.fromarray(noise), "what is it?"))
    black = model.forward_logits(preprocessor(Image.new("RGB", (70, 50)), "what is it?"))
    assert not torch.allclose(with_noise[-1], black[-1], atol=1e-3)

"""Preprocessing, bit-identical to the published processor."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from envs.spec import Tier
from rollout.molmoe import CoveringPreprocessor, Preprocessor
from rollout.molmoe.tiling import FILL_TIERS, select_fill_tiling, select_tiling
from tests.reference import FOLDER, needs_reference

pytestmark = needs_reference
GOLDEN = FOLDER / "golden"
CASES = (
    json.loads((GOLDEN / "preprocess_meta.json").read_text())["cases"] if GOLDEN.is_dir() else {}
)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "preprocess.safetensors")


@pytest.fixture(scope="module")
def preprocessor():
    return Preprocessor.from_pretrained(FOLDER / "molmoe-1b")


@pytest.fixture(scope="module")
def covering():
    return CoveringPreprocessor.from_pretrained(FOLDER / "molmoe-1b")


@pytest.mark.parametrize("case", CASES)
def test_pixels_masks_indices_and_tokens(preprocessor, covering, golden, case):
    facts = CASES[case]
    image = Image.fromarray(golden[f"img.{facts['image']}"].numpy())
    if case.startswith("hf."):
        inputs = preprocessor(image, "Describe this image.", max_crops=facts["max_crops"])
    else:
        tier = Tier.parse(facts["tier"])
        inputs = covering.at_tier(covering.overview(image), "Describe this image.", tier)
    assert inputs.tiling == tuple(facts["tiling"])
    digest = hashlib.sha256(inputs.images.numpy().tobytes()).hexdigest()
    assert digest == facts["sha256_float32"]
    assert torch.equal(inputs.image_masks, golden[f"{case}.image_masks"])
    assert torch.equal(inputs.image_input_idx.int(), golden[f"{case}.image_input_idx"])
    assert torch.equal(inputs.token_ids, golden[f"{case}.input_ids"])
    assert inputs.num_vision_tokens == facts["vision_tokens"]


def test_prompt_tokens(preprocessor, golden):
    prompts = json.loads((GOLDEN / "preprocess_meta.json").read_text())["prompts"]
    for key, prompt in prompts.items():
        assert preprocessor.encode_prompt(prompt).tolist() == golden[key].tolist()
    for row in json.loads((GOLDEN / "prompts.json").read_text()):
        text = row["prompt"].removeprefix(" User: ").removesuffix(" Assistant:")
        assert preprocessor.encode_prompt(text).tolist() == row["ids"]


def test_tiling_tables():
    tables = json.loads((GOLDEN / "tables.json").read_text())
    for height, width, max_crops, rows, cols in tables["select_tiling_plain"]:
        assert select_tiling(height - 112, width - 112, 224, max_crops) == (rows, cols)
    for height, width, tier, rows, cols in tables["select_tiling_tier"]:
        assert select_fill_tiling(height, width, FILL_TIERS[tier]) == (rows, cols)


def test_token_count_law(preprocessor):
    image = Image.fromarray(np.zeros((900, 1300, 3), dtype=np.uint8))
    rows, cols = preprocessor(image, "x").tiling
    inputs = preprocessor(image, "x")
    assert (rows, cols) == (3, 4)
    assert inputs.num_vision_tokens == 144 + (8 * rows + 4) * (8 * cols + 4) == 1152
    image_length = len(inputs.token_ids) - 1 - inputs.num_text_tokens
    assert image_length == 160 + (8 * rows + 4) * (8 * cols + 5)

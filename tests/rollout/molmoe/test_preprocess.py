"""How many vision tokens an image has at each tier, known before a crop is made."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from envs.spec import TIERS, Tier
from rollout.molmoe import CoveringPreprocessor, Preprocessor
from rollout.molmoe.config import resolve_config
from rollout.worker_config import EMBEDDED
from tests.rollout.molmoe.tiny import TINY
from tests.rollout.rig import tokenizer

CONFIGS = {
    "tiny": TINY,
    "uneven margins": replace(TINY, overlap_margins=(2, 4)),
    "embedded": resolve_config(EMBEDDED),
}
SHAPES = [(1, 1), (32, 32), (50, 70), (5, 400), (400, 5), (37, 191), (300, 120), (131, 640)]
"""Heights and widths: squares, odd ones, and strips."""

KINDS = {"letterbox": Preprocessor, "fill": CoveringPreprocessor}


def picture(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_number_of_vision_tokens_is_known_from_the_shape(kind, config):
    preprocessor = kind(config, tokenizer())
    counts = {}
    for shape in SHAPES:
        overview = preprocessor.overview(picture(*shape))
        for tier in TIERS:
            inputs = preprocessor.at_tier(overview, "what is it", tier)
            assert preprocessor.num_vision_tokens(overview, tier) == inputs.num_vision_tokens
            assert preprocessor.tiling_at(overview, tier) == inputs.tiling
            assert len(inputs.images) == 1 + inputs.tiling[0] * inputs.tiling[1]
            counts[shape, tier] = inputs.num_vision_tokens
    assert counts[(300, 120), Tier.LOW] < counts[(300, 120), Tier.HIGH]
    assert len({counts[shape, Tier.HIGH] for shape in SHAPES}) > 2, "shapes differ"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_text_has_no_vision_tokens(kind):
    preprocessor = kind(TINY, tokenizer())
    for tier in TIERS:
        inputs = preprocessor.at_tier(None, "what is it", tier)
        assert preprocessor.num_vision_tokens(None, tier) == inputs.num_vision_tokens == 0
        assert inputs.tiling == (0, 0)
        assert inputs.num_text_tokens == len(preprocessor.encode_prompt("what is it"))

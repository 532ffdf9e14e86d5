"""What stage 1 sees besides words."""

import math
import warnings

import numpy as np
import pytest
import torch

from envs.spec import NUM_SIZES
from rollout.image_feature import LOG_TYPICAL, image_dim, pooled, sizes_of
from tests.rollout.molmoe.tiny import TINY


def test_sizes_are_logarithms_of_counts():
    counts = (144, 300, 1152, 12)
    found = sizes_of(counts[:3], counts[3])
    assert len(found) == NUM_SIZES
    assert found == pytest.approx([math.log(count) - LOG_TYPICAL for count in counts])


def test_without_an_image_its_sizes_are_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sizes_of([0, 0, 0], 7)
    assert found == pytest.approx([0.0, 0.0, 0.0, math.log(7) - LOG_TYPICAL])


def test_the_feature_has_room_for_the_sizes():
    width = TINY.vision.dim
    rng = torch.Generator().manual_seed(0)
    features_11PF = torch.randn(1, 1, 9, 2 * width, generator=rng)
    found_E = pooled(features_11PF, TINY).numpy()
    assert image_dim(TINY) == width + NUM_SIZES + 1
    assert np.allclose(found_E, features_11PF[0, 0, :, :width].mean(0), atol=1e-6)

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from envs.budgets import BudgetRange
from policy.budget_encoder import BudgetEncoder, frequencies, sinusoids

GOLDEN = Path(__file__).parents[3] / "shared" / "reference" / "golden" / "budget_a.safetensors"
GOLDEN_RANGE = BudgetRange(low_ms=50.0, high_ms=500.0)


def test_sinusoids_by_hand():
    encoded = sinusoids(torch.tensor([0.0, 1.0, 2.5]), frequencies(4).float())
    expected = [
        [math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)] for x in (0.0, 1.0, 2.5)
    ]
    torch.testing.assert_close(encoded, torch.tensor(expected))


def test_encoder_normalises_by_its_range():
    torch.manual_seed(0)
    encoder = BudgetEncoder(12, BudgetRange(low_ms=100.0, high_ms=300.0), sinusoid_scale=2.0)
    expected = encoder.mlp(sinusoids(torch.tensor([0.0, 1.0, 2.0]), encoder.frequencies).float())
    torch.testing.assert_close(encoder(torch.tensor([100.0, 200.0, 300.0])), expected)


def test_budgets_outside_the_range_are_its_ends():
    encoder = BudgetEncoder(12, BudgetRange(low_ms=100.0, high_ms=300.0), sinusoid_scale=100.0)
    low, low_end, high_end, high = encoder(torch.tensor([7.0, 100.0, 300.0, 900.0]))
    assert torch.equal(low, low_end)
    assert torch.equal(high, high_end)
    assert not torch.equal(low, high)


def test_reference_encoder():
    """The reference clips budgets to 50..500 ms, maps them to [0, 1] and does not scale them."""
    if not GOLDEN.exists():
        pytest.skip(f"no reference tensors at {GOLDEN}")
    golden = load_file(GOLDEN)
    budgets_ms = golden["budgets_ms"]
    torch.testing.assert_close(
        sinusoids((budgets_ms.clamp(50.0, 500.0) - 50.0) / 450.0, frequencies().float()),
        golden["sinusoid"],
        rtol=1e-5,
        atol=1e-6,
    )
    encoder = BudgetEncoder(golden["tokens"].shape[1], GOLDEN_RANGE)
    encoder.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in golden.items() if k.startswith("encoder.")}
    )
    torch.testing.assert_close(encoder(budgets_ms), golden["tokens"], rtol=1e-4, atol=1e-5)

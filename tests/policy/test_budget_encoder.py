import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from envs.budgets import BudgetRange
from envs.prices import FREE, PriceRange
from policy.budget_encoder import BudgetEncoder, sinusoids, waves

GOLDEN = Path(__file__).parents[3] / "shared" / "reference" / "golden" / "budget_a.safetensors"
GOLDEN_RANGE = BudgetRange(low_ms=50.0, high_ms=500.0)


def test_sinusoids_by_hand():
    encoded = sinusoids(torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64), *waves(4))
    expected = [
        [math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)] for x in (0.0, 1.0, 2.5)
    ]
    torch.testing.assert_close(encoded, torch.tensor(expected, dtype=torch.float64))


def test_waves_place_the_origin_and_the_scale():
    x = torch.tensor([95.0, 100.0, 300.0], dtype=torch.float64)
    moved = sinusoids(x, *waves(8, scale=0.5, origin=100.0))
    torch.testing.assert_close(moved, sinusoids((x - 100) / 2, *waves(8)))


def test_encoder_normalises_by_its_range():
    torch.manual_seed(0)
    encoder = BudgetEncoder(12, BudgetRange(low_ms=100.0, high_ms=300.0), sinusoid_scale=2.0)
    scaled = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    expected = encoder.mlp(sinusoids(scaled, *waves()).float())
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
        sinusoids((budgets_ms.double().clamp(50.0, 500.0) - 50.0) / 450.0, *waves()).float(),
        golden["sinusoid"],
        rtol=1e-5,
        atol=1e-6,
    )
    encoder = BudgetEncoder(golden["tokens"].shape[1], GOLDEN_RANGE)
    encoder.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in golden.items() if k.startswith("encoder.")}
    )
    torch.testing.assert_close(encoder(budgets_ms), golden["tokens"], rtol=1e-4, atol=1e-5)


RANGE = BudgetRange(low_ms=100.0, high_ms=300.0)
PRICES = PriceRange(low=0.01, high=2.0)
WIDTH = 24


def test_without_prices_it_is_the_documents_encoder_to_the_bit():
    """Budget -> 256 sinusoids -> Linear, LayerNorm, GELU, Linear, LayerNorm."""
    torch.manual_seed(5)
    encoder = BudgetEncoder(WIDTH, RANGE)
    after = torch.rand(3)
    torch.manual_seed(5)
    document = nn.Sequential(
        nn.Linear(256, WIDTH),
        nn.LayerNorm(WIDTH),
        nn.GELU(),
        nn.Linear(WIDTH, WIDTH),
        nn.LayerNorm(WIDTH),
    )
    assert torch.equal(torch.rand(3), after), "as many random numbers are drawn"
    ours = {name.removeprefix("mlp."): w for name, w in encoder.state_dict().items()}
    assert list(ours) == list(document.state_dict())
    assert all(torch.equal(ours[name], w) for name, w in document.state_dict().items())
    budgets_ms = torch.linspace(100.0, 300.0, 41, dtype=torch.float64)
    channel = torch.arange(0, 256, 2, dtype=torch.float64)
    angles = ((budgets_ms - 100.0) / 200.0)[:, None] * torch.exp(-math.log(1e4) * channel / 256)
    encoded = torch.zeros(41, 256, dtype=torch.float64)
    encoded[:, 0::2], encoded[:, 1::2] = angles.sin(), angles.cos()
    expected = document(encoded.float())
    assert torch.equal(encoder(budgets_ms), expected)
    assert torch.equal(encoder(budgets_ms, torch.full((41,), 0.7)), expected), "no price is seen"


def priced_encoder():
    torch.manual_seed(0)
    return BudgetEncoder(WIDTH, RANGE, price_range=PRICES)


@torch.no_grad()
def tokens_at(prices, budget_ms=200.0):
    prices_B = torch.tensor(prices, dtype=torch.float64)
    return priced_encoder()(torch.full_like(prices_B, budget_ms), prices_B)


def test_the_token_depends_on_budget_and_price():
    tokens = tokens_at([0.02, 0.1, 0.2, 0.3, 1.0])
    assert (torch.pdist(tokens) > 0.05).all()
    assert not torch.allclose(tokens, tokens_at([0.02, 0.1, 0.2, 0.3, 1.0], budget_ms=250.0))


def test_zero_has_a_token_of_its_own_and_is_the_default():
    encoder, budget = priced_encoder(), torch.tensor([200.0])
    assert torch.equal(encoder(budget), encoder(budget, torch.tensor([FREE])))
    grid = torch.logspace(math.log10(PRICES.low), math.log10(PRICES.high), 200).tolist()
    free, *priced = tokens_at([FREE, *grid])
    from_zero = (torch.stack(priced) - free).norm(dim=1)
    steps = torch.stack(priced).diff(dim=0).norm(dim=1)
    assert from_zero.min() > 5 * steps.max(), "no price is as near to zero as to its neighbour"


def test_prices_outside_the_range_are_its_ends():
    below, low, high, above = tokens_at([1e-6, PRICES.low, PRICES.high, 50.0])
    assert torch.equal(below, low)
    assert torch.equal(high, above)
    assert not torch.equal(low, high)


def test_gradients_are_finite_at_every_price():
    encoder = priced_encoder()
    prices = torch.tensor([FREE, 1e-9, PRICES.low, 0.3, PRICES.high, 9.0], requires_grad=True)
    weights_BD = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    (encoder(torch.full((6,), 200.0), prices) * weights_BD).sum().backward()
    assert prices.grad.isfinite().all()
    assert prices.grad[3] != 0
    for name, weight in encoder.named_parameters():
        assert weight.grad.isfinite().all(), name

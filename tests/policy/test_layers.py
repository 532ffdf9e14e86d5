"""The layers compute what torch's own do."""

import pytest
import torch

from policy.layers import GELU, LayerNorm, Linear, Sequential, gelu, normalised

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("x", [X, X[:1]], ids=["rows", "row"])
@pytest.mark.parametrize(
    "layer",
    [Linear(8, 5), LayerNorm(8), GELU(), Sequential(Linear(8, 5), GELU())],
    ids=["linear", "norm", "gelu", "sequence"],
)
def test_a_call_gives_what_torchs_own_layer_gives(layer, x):
    x = x.clone().requires_grad_()
    own, theirs = layer(x), type(layer).__base__.forward(layer, x)
    torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-7)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (own, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gelu_of_a_row_alone_is_that_of_the_row_among_others(dtype):
    together = gelu(X.to(dtype))
    for row, expected in zip(X.to(dtype).split(1), together.split(1), strict=True):
        assert gelu(row).dtype == dtype
        torch.testing.assert_close(gelu(row), expected, rtol=1e-6, atol=1e-7)


def test_normalised_is_layer_norm_without_weights():
    expected = torch.nn.LayerNorm(8, elementwise_affine=False)(X)
    torch.testing.assert_close(normalised(X), expected, rtol=0, atol=0)

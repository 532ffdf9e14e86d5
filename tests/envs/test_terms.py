"""What a request may ask for."""

import math

import pytest

from envs.prices import FREE
from envs.terms import Terms


def test_terms_are_floats_and_time_is_free_by_default():
    terms = Terms(budget_ms=50)
    assert (terms.budget_ms, terms.price) == (50.0, FREE)
    assert isinstance(terms.budget_ms, float)
    assert isinstance(Terms(budget_ms=50, price=1).price, float)


@pytest.mark.parametrize("budget_ms", [0, -1, math.nan, math.inf])
def test_unusable_budgets_are_refused(budget_ms):
    with pytest.raises(ValueError, match="positive, finite"):
        Terms(budget_ms=budget_ms)


@pytest.mark.parametrize("price", [-1, -1e-9, math.nan, math.inf, -math.inf])
def test_unusable_prices_are_refused(price):
    with pytest.raises(ValueError, match="finite number of at least 0"):
        Terms(budget_ms=50, price=price)

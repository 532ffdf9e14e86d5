import numpy as np
import pytest

from learner.advantages import (
    ADVANTAGE_FORMS,
    combine,
    group_standardised,
    leave_one_out,
    mean_only,
    zero_variance,
)

VALUES = np.array([[1.0, 0.0, 0.5], [2.0, 2.0, -1.0]])
FORMS = list(ADVANTAGE_FORMS.values())


def test_leave_one_out_by_hand():
    expected = [[0.75, -0.75, 0.0], [1.5, 1.5, -3.0]]
    np.testing.assert_allclose(leave_one_out(VALUES), expected)


def test_mean_only_by_hand():
    np.testing.assert_allclose(mean_only(VALUES), [[0.5, -0.5, 0.0], [1.0, 1.0, -2.0]])


def test_group_standardised_by_hand():
    expected = [[1.5**0.5, -(1.5**0.5), 0.0], [0.5**0.5, 0.5**0.5, -(2**0.5)]]
    np.testing.assert_allclose(group_standardised(VALUES), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_invariances(form):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 5))
    advantages = form(values)
    np.testing.assert_allclose(advantages.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(form(values + rng.normal(size=(6, 1))), advantages, atol=1e-9)
    members, groups = rng.permutation(5), rng.permutation(6)
    np.testing.assert_allclose(form(values[:, members]), advantages[:, members], atol=1e-12)
    np.testing.assert_array_equal(form(values[groups]), advantages[groups])


def test_scale_of_each_form():
    scaled = 3 * VALUES
    np.testing.assert_allclose(leave_one_out(scaled), 3 * leave_one_out(VALUES))
    np.testing.assert_allclose(mean_only(scaled), 3 * mean_only(VALUES))
    np.testing.assert_allclose(group_standardised(scaled), group_standardised(VALUES), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_equal_rewards_give_exactly_zero(form):
    assert (form(np.full((2, 4), 0.25)) == 0).all()


def test_zero_variance():
    values = np.array([[1.0, 1.0], [1.0, 1.1], [np.nan, np.nan]])
    np.testing.assert_array_equal(zero_variance(values), [True, False, False])


def test_constraint_does_not_shrink_the_scores_advantages():
    score = np.array([[1.0, 0.0, 1.0, 0.0]])
    constraint = np.array([[-100.0, 0.0, 0.0, -100.0]])
    combined = combine(group_standardised, score, constraint)
    np.testing.assert_allclose(combined, [[0.0, 0.0, 2.0, -2.0]], atol=1e-5)
    together = group_standardised(score + constraint)
    assert abs(together[0, 0] - together[0, 3]) < 0.03


def test_combined_linear_forms_are_the_forms_of_the_sum():
    rng = np.random.default_rng(1)
    score, constraint = rng.normal(size=(2, 3, 4))
    for form in (leave_one_out, mean_only):
        np.testing.assert_allclose(combine(form, score, constraint), form(score + constraint))


@pytest.mark.parametrize("form", FORMS)
def test_a_group_of_one_is_refused(form):
    with pytest.raises(ValueError, match="group_size of at least 2"):
        form(np.zeros((3, 1)))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        combine(mean_only, np.zeros((2, 3)), np.zeros((3, 2)))

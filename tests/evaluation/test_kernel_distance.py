"""The kernel distance against sums over pairs, moments of Gaussians, and its own spread."""

import math

import numpy as np
import pytest

from genai_jax.evaluation.kernel_distance import (
    cubic_kernel,
    kernel_distance,
    squared_discrepancy,
)


def normal(n, d=1, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def test_estimate_is_the_sum_over_pairs():
    x, y = normal(5, 3), normal(7, 3, 1.0, seed=1)

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3

    def mean(pairs):
        values = [k(a, b) for a, b in pairs]
        return sum(values) / len(values)

    expected = (
        mean([(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
        + mean([(y[i], y[j]) for i in range(7) for j in range(7) if i != j])
        - 2 * mean([(a, b) for a in x for b in y])
    )
    assert squared_discrepancy(x, y).value == pytest.approx(expected, rel=1e-12)
    assert cubic_kernel(x, y)[2, 3] == pytest.approx(k(x[2], y[3]))


def test_standard_error_is_the_jackknife():
    x, y = normal(6, 2), normal(5, 2, 0.5, seed=1)
    total = 0.0
    for rows, leave in (
        (6, lambda i: (np.delete(x, i, 0), y)),
        (5, lambda i: (x, np.delete(y, i, 0))),
    ):
        values = [squared_discrepancy(*leave(i)).value for i in range(rows)]
        total += (rows - 1) * np.var(values)
    assert squared_discrepancy(x, y).standard_error == pytest.approx(math.sqrt(total), rel=1e-10)


def test_mean_and_spread_over_many_draws_are_the_closed_form_and_the_standard_error():
    r"""In one dimension $k = 1 + 3xy + 3x^2y^2 + x^3y^3$: differences of three moments."""
    shift, n = 0.7, 60
    # E x, E x^2, E x^3 of N(m, 1) are m, m^2 + 1, m^3 + 3 m.
    truth = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    found = [
        squared_discrepancy(normal(n, seed=2 * i), normal(n, shift=shift, seed=2 * i + 1))
        for i in range(1000)
    ]
    values = np.array([estimate.value for estimate in found])
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))
    errors = np.array([estimate.standard_error for estimate in found])
    assert math.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.15)


def test_no_difference_gives_zero_on_average_and_values_of_both_signs():
    values = [
        squared_discrepancy(normal(30, 4, seed=2 * i), normal(40, 4, seed=2 * i + 1)).value
        for i in range(500)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_sets_with_the_same_classes_as_often_are_below_zero():
    mean, n = 0.8, 10
    classes = np.repeat([[mean], [-mean]], n // 2, axis=0)
    values = [
        squared_discrepancy(
            classes + normal(n, seed=2 * i), classes + normal(n, seed=2 * i + 1)
        ).value
        for i in range(2000)
    ]
    # Of two classes, a - s is minus the odd moments' part of k: 3 (E x)^2 + (E x^3)^2.
    expected = 2 * -(3 * mean**2 + (mean**3 + 3 * mean) ** 2) / (n - 1)
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - expected) < 4 * error < abs(expected) / 2


def test_order_of_rows_and_of_sets_does_not_show():
    x, y = normal(8, 3), normal(6, 3, 1.0, seed=1)
    one, other = squared_discrepancy(x, y), squared_discrepancy(y[::-1], x[::-1])
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_subsets_that_hold_everything_are_the_whole():
    x, y = normal(12, 2), normal(12, 2, 1.0, seed=1)
    assert kernel_distance(x, y, subset_size=12) == squared_discrepancy(x, y)


def test_subsets_estimate_the_same_and_are_a_function_of_the_seed():
    x, y = normal(400, 2), normal(300, 2, 0.5, seed=1)
    whole = squared_discrepancy(x, y)
    parts = kernel_distance(x, y, subsets=200, subset_size=50)
    assert abs(parts.value - whole.value) < 4 * parts.standard_error
    assert parts == kernel_distance(x, y, subsets=200, subset_size=50)
    assert parts != kernel_distance(x, y, subsets=200, subset_size=50, seed=1)


def test_what_has_no_estimate_is_refused():
    with pytest.raises(ValueError, match="at least 3 compared images; got 2"):
        squared_discrepancy(normal(2), normal(5))
    with pytest.raises(ValueError, match=r"`subsets` must be at least 2; got 1\."):
        kernel_distance(normal(5), normal(5), subsets=1)
    with pytest.raises(ValueError, match=r"`subset_size` must be at least 3; got 2\."):
        kernel_distance(normal(5), normal(5), subset_size=2)

"""Simulated masses of boxes against exact ones."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from genai_jax.evaluation.box_mass import log_box_masses

COVARIANCES = {
    2: np.array([[1.0, 0.7], [0.7, 2.0]]),
    3: np.array([[1.0, 0.5, -0.3], [0.5, 1.5, 0.4], [-0.3, 0.4, 0.8]]),
}
BOXES = {
    2: [([-1, 0], [0.5, 2]), ([-np.inf, 0.5], [0.2, 1]), ([1, -np.inf], [np.inf, -0.5])],
    3: [([-1, -1, -1], [1, 0.5, 2]), ([-np.inf, 0, 0.1], [0, 1, np.inf]), ([2, 2, 1], [3, 3, 2])],
}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_masses_are_those_of_the_distribution_function(dimensions):
    """Of two Gaussians, in bounded boxes, half-open ones, and one far out."""
    covariance = COVARIANCES[dimensions]
    means = np.stack([np.zeros(dimensions), np.linspace(-0.5, 0.6, dimensions)])
    low, high = (np.array(ends, float) for ends in zip(*BOXES[dimensions], strict=True))
    covariances = np.stack([covariance, 0.5 * covariance])
    found, errors = log_box_masses(low, high, means, covariances, draws=20_000)
    for k in range(2):
        gaussian = multivariate_normal(means[k], covariances[k], abseps=1e-9, releps=1e-9)
        exact = [gaussian.cdf(b, lower_limit=a) for a, b in zip(low, high, strict=True)]
        assert (errors[:, k] < 0.02).all()
        np.testing.assert_array_less(np.abs(found[:, k] - np.log(exact)), 4 * errors[:, k] + 1e-5)


def test_independent_numbers_need_no_luck():
    """Exact, with no error, however far out: 30 deviations, and either side alike."""
    low, high = np.array([[20.0, -31, -0.5, -np.inf]]), np.array([[21.0, -30, 0.5, np.inf]])
    found, errors = log_box_masses(low, high, np.zeros((1, 4)), np.eye(4)[None], draws=8)
    exact = (
        norm.logsf(20)
        + np.log1p(-np.exp(norm.logsf(21) - norm.logsf(20)))
        + norm.logcdf(-30)
        + np.log1p(-np.exp(norm.logcdf(-31) - norm.logcdf(-30)))
        + np.log(norm.cdf(0.5) - norm.cdf(-0.5))
    )
    np.testing.assert_allclose(found, [[exact]], rtol=1e-12)
    np.testing.assert_allclose(errors, 0, atol=1e-12)


def test_errors_are_what_seeds_differ_by():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((6, 6))
    covariance = (factor @ factor.T + np.eye(6))[None]
    low = np.repeat(np.array([[-1.0, 0, -np.inf, 0.5, 1, -2]]), 300, axis=0)
    found, errors = log_box_masses(low, low + 1.5, np.zeros((1, 6)), covariance, draws=200)
    assert found.std(ddof=1) == pytest.approx(np.sqrt(np.square(errors).mean()), rel=0.15)
    again, _ = log_box_masses(low, low + 1.5, np.zeros((1, 6)), covariance, draws=200)
    np.testing.assert_array_equal(found, again)

"""Fréchet distance against closed forms and SciPy's matrix root."""

import numpy as np
import pytest
import scipy.linalg

from genai_jax.evaluation.frechet import (
    Moments,
    frechet_distance,
    merge_moments,
    moments_of,
    stream_moments,
)


def gaussian(mean, covariance):
    """Moments of exactly this mean and covariance."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return Moments(101, np.asarray(mean, np.float64), root * 10)


def covariance(moments):
    return moments.root.T @ moments.root


def random_covariance(d, rank, seed):
    factor = np.random.default_rng(seed).standard_normal((d, rank))
    return factor @ factor.T


def test_one_dimension_is_the_difference_of_means_and_deviations():
    distance = frechet_distance(gaussian([1.0], [[4.0]]), gaussian([-2.0], [[0.25]]))
    assert distance == pytest.approx(3.0**2 + (2.0 - 0.5) ** 2, rel=1e-12)


def test_commuting_covariances_add_up_over_their_common_axes():
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    a, b = np.array([1.0, 4.0, 9.0, 0.0, 0.25]), np.array([4.0, 4.0, 1.0, 1.0, 0.0])
    distance = frechet_distance(
        Moments(2, np.zeros(5), np.sqrt(a)[:, None] * axes.T),
        Moments(2, np.ones(5), np.sqrt(b)[:, None] * axes.T),
    )
    assert distance == pytest.approx(5 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=1e-12)


@pytest.mark.parametrize("rank", [6, 3])
def test_general_covariances_are_those_of_scipy(rank):
    a, b = random_covariance(6, 6, 0), random_covariance(6, rank, 1)
    means = np.random.default_rng(2).standard_normal((2, 6))
    root = scipy.linalg.sqrtm(a @ b)
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(a + b - 2 * root.real)
    forward = frechet_distance(gaussian(means[0], a), gaussian(means[1], b))
    back = frechet_distance(gaussian(means[1], b), gaussian(means[0], a))
    assert forward == pytest.approx(expected, rel=1e-6)
    assert forward == pytest.approx(back, rel=1e-12)


def test_scales_as_a_squared_distance_and_does_not_see_rotations():
    random = np.random.default_rng(3)
    x, y = random.standard_normal((40, 4)), random.standard_normal((30, 4)) * [1, 2, 3, 4] + 1
    rotation = np.linalg.qr(random.standard_normal((4, 4)))[0]
    distance = frechet_distance(moments_of(x), moments_of(y))
    moved = frechet_distance(moments_of(3 * x @ rotation + 7), moments_of(3 * y @ rotation + 7))
    assert moved == pytest.approx(9 * distance, rel=1e-9)


def test_a_set_is_at_no_distance_from_itself_in_any_order():
    x = np.random.default_rng(4).standard_normal((10, 20))  # fewer than dimensions: singular
    distance = frechet_distance(moments_of(x), moments_of(x[::-1]))
    assert 0 <= distance < 1e-12


def test_bias_falls_as_one_over_n():
    """The distance of n samples to their own distribution, n times as large as of 1: constant."""
    random, d, truth = np.random.default_rng(5), 4, gaussian(np.zeros(4), np.eye(4))
    biases = {}
    for n in (50, 200):
        draws = random.standard_normal((400, n, d))
        biases[n] = n * np.mean([frechet_distance(moments_of(x), truth) for x in draws])
    # In the limit d from the mean, and d (d + 1) / 8 · ... from the covariance: the same for both.
    assert biases[50] == pytest.approx(biases[200], rel=0.1)
    assert biases[200] > d


def test_moments_are_numpys():
    x = np.random.default_rng(6).standard_normal((9, 3)).astype(np.float32)
    moments = moments_of(x)
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance(moments), np.cov(x.astype(np.float64).T), rtol=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [4, 5, 20]])
def test_parts_add_up_to_the_whole(cuts):
    x = np.random.default_rng(7).standard_normal((31, 3)) + 1e4  # where naive sums lose digits
    parts = stream_moments(iter(np.split(x, cuts)))
    whole = moments_of(x)
    assert parts.rows == whole.rows == 31
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(covariance(parts), np.cov(x.T), rtol=1e-8)
    twice = merge_moments(whole, whole)
    np.testing.assert_allclose(covariance(twice), np.cov(np.tile(x, (2, 1)).T), rtol=1e-8)


def test_sets_without_a_distance_are_refused():
    x = np.zeros((5, 2))
    with pytest.raises(ValueError, match="at least 2 images; got 1"):
        frechet_distance(moments_of(x[:1]), moments_of(x))
    with pytest.raises(ValueError, match="one width; got 2 and 1"):
        frechet_distance(moments_of(x), moments_of(x[:, :1]))
    with pytest.raises(ValueError, match="got no part"):
        stream_moments([])
    with pytest.raises(ValueError, match="must be finite"):
        moments_of(np.full((3, 2), np.inf))

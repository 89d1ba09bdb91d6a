import math

import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.embeddings import fourier_features, sinusoids


def test_sinusoids_are_their_closed_form_for_real_levels():
    levels = np.array([-1.5, 0.0, 0.3, 999.0])
    angles = levels[:, None] * 10_000.0 ** (-np.arange(16) / 15)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    actual = sinusoids(jnp.asarray(levels, jnp.float32), 32)
    np.testing.assert_allclose(actual, expected, atol=2e-4)  # float32 angles of up to 999


def test_the_slowest_sinusoid_has_the_longest_period():
    slow = sinusoids(jnp.array([0.0, 2 * math.pi * 500]), 8, max_period=500.0)[:, 3]
    np.testing.assert_allclose(slow, [0, 0], atol=1e-3)


@pytest.mark.parametrize("dim", [2, 5])
def test_sinusoids_need_two_pairs(dim):
    with pytest.raises(ValueError, match=f"even and at least 4; got {dim}"):
        sinusoids(jnp.zeros(1), dim)


def test_fourier_features_tell_neighbouring_levels_apart():
    x = jnp.asarray([[0.25, -1.0]])
    features = fourier_features(x, (0, 2))
    s = math.sqrt(0.5)
    np.testing.assert_allclose(features, [[s, 0, s, -1, 0, 0, -1, 1]], atol=1e-6)
    levels = jnp.arange(4)[:, None] * 2 / 256
    turns = fourier_features(levels, (7,))[:, 1]
    np.testing.assert_allclose(turns, [1, -1, 1, -1], atol=1e-4)
    assert fourier_features(x, ()).shape == (1, 0)

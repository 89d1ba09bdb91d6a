import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.dropout import dropout

KEYS = jax.random.split(jax.random.key(0), 4)
ONES = jnp.ones((4, 300, 30))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_the_mean_is_kept(rate):
    y = np.asarray(dropout(ONES, KEYS, rate, place=0))
    kept = 1 - round(rate * 256) / 256
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / kept], rtol=1e-6)
    assert (y > 0).mean() == pytest.approx(kept, abs=5 * (kept * (1 - kept) / y.size) ** 0.5)


def test_noise_follows_the_row_key_and_the_place():
    y = dropout(ONES, KEYS, 0.5, place=0)
    np.testing.assert_array_equal(dropout(ONES[2:3], KEYS[2:3], 0.5, place=0)[0], y[2])
    patterns = [y[0], y[1], dropout(ONES, KEYS, 0.5, place=1)[0]]
    for i in range(3):
        agreement = float(jnp.mean((patterns[i] > 0) == (patterns[i - 1] > 0)))
        assert agreement == pytest.approx(0.5, abs=0.03)


def test_no_rate_is_the_identity():
    np.testing.assert_array_equal(dropout(ONES, KEYS, 0.0, place=0), ONES)

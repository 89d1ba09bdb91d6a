"""Random numbers by counter: the reference's stream, and the properties that packing relies on."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from genai_jax.data.random_order import _GOLDEN, _mixed, permutation, random_bits


def test_mixing_is_that_of_splitmix64():
    """The first outputs of S. Vigna's `splitmix64.c` from the seed 1234567."""
    counters = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * _GOLDEN
    assert _mixed(counters).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_bits_never_change():
    """These numbers are the order of the data of every run so far."""
    bits = random_bits(0, "windows", np.arange(3, dtype=np.uint64))
    assert bits.tolist() == [15090840824653667419, 16875412459434314152, 12688010733275425459]
    assert permutation(1, "rows of epoch 0", 8).tolist() == [6, 0, 2, 3, 7, 1, 5, 4]


@given(st.integers(-(2**70), 2**70), st.text(max_size=5), st.integers(0, 200))
def test_permutations_hold_each_number_once(seed, purpose, n):
    order = permutation(seed, purpose, n)
    assert sorted(order.tolist()) == list(range(n))
    np.testing.assert_array_equal(order, permutation(seed, purpose, n))


def test_seeds_and_purposes_are_independent():
    indices = np.arange(20_000, dtype=np.uint64)
    streams = [
        random_bits(seed, purpose, indices)
        for seed in (0, 1, -1)
        for purpose in ("windows", "rows of epoch 0", "rows of epoch 1")
    ]
    assert len(np.unique(np.concatenate(streams))) == 9 * len(indices)
    uniform = np.stack(streams).astype(np.float64) / 2.0**64
    correlations = np.corrcoef(uniform)[np.triu_indices(9, 1)]
    assert np.abs(correlations).max() < 0.03
    np.testing.assert_allclose(uniform.mean(1), 0.5, atol=0.01)
    np.testing.assert_allclose(uniform.var(1), 1 / 12, atol=0.003)

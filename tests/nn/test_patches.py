import math

import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.nn.patches import grid_sinusoids, patchify, unpatchify

IMAGE = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 9, 2)), jnp.float32)


def test_patches_are_cut_row_by_row_and_put_together_again():
    patches = patchify(IMAGE, 3)
    assert patches.shape == (2, 6, 3, 3, 2)
    for n in range(6):
        row, column = divmod(n, 3)
        expected = IMAGE[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(patches[:, n], expected)
    np.testing.assert_array_equal(unpatchify(patches, 3), IMAGE)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must divide height and width; got 4 and 6 × 9"):
        patchify(IMAGE, 4)


def test_positions_are_their_formula():
    table, k = grid_sinusoids(2, 3, 12), 3
    assert table.dtype == np.float64
    for n in range(6):
        row, column = divmod(n, 3)
        for i in range(k):
            omega = 10_000 ** (-i / k)
            expected = [
                math.sin(column * omega),
                math.cos(column * omega),
                math.sin(row * omega),
                math.cos(row * omega),
            ]
            np.testing.assert_allclose(table[n, i::k], expected, rtol=1e-12, atol=1e-15)


def test_products_of_positions_depend_on_the_displacement_alone():
    grid = grid_sinusoids(5, 7, 16).reshape(5, 7, 16)
    for down, right in ((0, 0), (1, 0), (2, 3)):
        products = np.sum(grid[: 5 - down, : 7 - right] * grid[down:, right:], axis=-1)
        omega = 10_000.0 ** (-np.arange(4) / 4)
        expected = np.sum(np.cos(down * omega) + np.cos(right * omega))
        np.testing.assert_allclose(products, expected, rtol=1e-12)


def test_positions_need_a_size_that_four_divides():
    with pytest.raises(ValueError, match="that 4 divides; got 6"):
        grid_sinusoids(2, 2, 6)

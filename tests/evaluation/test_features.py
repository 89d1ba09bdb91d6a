"""Features: batches do not show, and what cannot be compared is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.evaluation.features import (
    apply_in_batches,
    check_features,
    check_same_width,
    make_features,
    pixels,
)


def images_of(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 2, 3, 1)).astype(np.float32)


def test_pixels_are_the_image_row_by_row():
    images = images_of(4)
    assert pixels(images).dtype == np.float64
    np.testing.assert_array_equal(pixels(images)[2], images[2].ravel())


@pytest.mark.parametrize("n", [1, 4, 7, 8])
def test_batches_do_not_show(n):
    images, traces = images_of(n), []

    def function(model, batch):
        traces.append(batch.shape)
        return jnp.sum(batch, axis=(1, 2, 3))[:, None] * model

    features = make_features(function, jnp.float32(2.0), batch_size=4)
    expected = 2 * images.sum(axis=(1, 2, 3))[:, None]
    np.testing.assert_allclose(features(images), expected, rtol=1e-5)
    assert features(images).dtype == np.float64
    assert traces == [(4, 2, 3, 1)]  # one executable for every number of images


def test_several_results_are_cut_and_joined_alike():
    images = images_of(5)
    function = jax.jit(lambda model, batch: (batch[:, 0, 0], {"sum": batch.sum((1, 2, 3))}))
    first, rest = apply_in_batches(function, None, images, batch_size=2)
    np.testing.assert_array_equal(first, images[:, 0, 0])
    np.testing.assert_allclose(rest["sum"], images.sum((1, 2, 3)), rtol=1e-5)


def test_what_cannot_be_compared_is_refused():
    features = np.zeros((5, 2))
    features[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 5 sampled images with others, the first at 3"):
        check_features(features, "sampled")
    with pytest.raises(ValueError, match=r"at least 2 real images; got 1"):
        check_features(features[:1], "real")
    with pytest.raises(ValueError, match=r"one width; got 2 and 3"):
        check_same_width(features, np.zeros((5, 3)))
    with pytest.raises(ValueError, match="got none"):
        apply_in_batches(jax.jit(lambda model, batch: batch), None, images_of(0))

"""Memorisation: copies are found, new images are not, and the picture shows the nearest pairs."""

import io

import numpy as np
import pytest
from PIL import Image

from genai_jax.evaluation.memorisation import memorisation, nearest_pairs_png


def points(n, seed, d=6):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_one_dimension_by_hand():
    train, held_out = np.array([[0.0], [10.0]]), np.array([[1.0], [2.0], [12.0], [14.0]])
    # Held-out distances are 1, 2, 2 and 4: half of them lies below the median of 2.
    found = memorisation(np.array([[10.0], [8.5], [3.0]]), train, held_out, percentile=50)
    assert found.threshold == 2
    np.testing.assert_array_equal(found.distances, [0, 1.5, 3])
    np.testing.assert_array_equal(found.indices, [1, 1, 0])
    assert found.share_close == pytest.approx(2 / 3)
    assert found.share_copied == pytest.approx(1 / 3)
    assert found.ratio == 1.5 / 2


def test_copies_are_all_close():
    train = points(50, 0)
    found = memorisation(train[::-1], train, points(40, 1))
    assert found.share_close == found.share_copied == 1
    assert found.ratio == 0
    np.testing.assert_array_equal(found.indices, np.arange(50)[::-1])


def test_new_images_are_as_close_as_the_percentile_says():
    train, held_out = points(200, 0), points(4000, 1)
    found = memorisation(points(4000, 2), train, held_out, percentile=5)
    assert found.share_close == pytest.approx(0.05, abs=4 * np.sqrt(2 * 0.05 * 0.95 / 4000))
    assert found.share_copied == 0
    assert found.ratio == pytest.approx(1, abs=0.05)


def test_slightly_changed_copies_are_close_and_not_copied():
    train = points(50, 0)
    found = memorisation(train + 1e-3, train, points(40, 1))
    assert found.share_close == 1
    assert found.share_copied == 0
    assert found.ratio < 0.01


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"`percentile` must be in \(0, 100\); got 100"):
        memorisation(points(3, 0), points(3, 1), points(3, 2), percentile=100)


def test_picture_shows_each_sample_above_its_nearest_training_image():
    train = np.linspace(-1, 1, 5, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1))
    samples = train[[4, 0, 2]] + np.float32([[[[0.01]]], [[[0.0]]], [[[0.2]]]])
    found = memorisation(samples.reshape(3, -1), train.reshape(5, -1), train.reshape(5, -1) + 1.0)
    picture = np.asarray(Image.open(io.BytesIO(nearest_pairs_png(samples, train, found, pairs=2))))
    middle = picture.shape[0] // 4, picture.shape[0] * 3 // 4
    left, right = picture.shape[1] // 4, picture.shape[1] * 3 // 4
    # Nearest first: the copy of the darkest, then what is nearly the brightest.
    assert picture[middle[0], left] == picture[middle[1], left] == 0
    assert picture[middle[0], right] == picture[middle[1], right] == 255

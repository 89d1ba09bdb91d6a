"""Pictures are read back, pixel by pixel."""

import io

import numpy as np
from PIL import Image

from genai_jax.evaluation.pictures import captioned_png, grid_png, to_uint8


def test_levels_are_mapped_and_clipped():
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32)
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 128, 255, 255])


def test_grid_keeps_every_pixel_in_its_place():
    images = np.random.default_rng(0).uniform(-1, 1, (5, 4, 3, 1)).astype(np.float32)
    picture = np.asarray(Image.open(io.BytesIO(grid_png(images, columns=3, min_width=30))))
    scale = 3  # (3 + 1) * 3 + 1 = 13 pixels across
    assert picture.shape == (11 * scale, 13 * scale)
    small = picture[::scale, ::scale]
    np.testing.assert_array_equal(small.repeat(scale, 0).repeat(scale, 1), picture)
    np.testing.assert_array_equal(small[1:5, 1:4], to_uint8(images[0, :, :, 0]))
    np.testing.assert_array_equal(small[6:10, 5:8], to_uint8(images[4, :, :, 0]))
    assert (small[6:10, 9:12] == 255).all()  # a place without an image


def test_colours_stay_colours():
    red = np.full((1, 2, 2, 3), -1, np.float32)
    red[..., 0] = 1
    picture = Image.open(io.BytesIO(grid_png(red, columns=1, min_width=8)))
    assert picture.mode == "RGB"
    assert picture.getpixel((4, 4)) == (255, 0, 0)


def test_captioned_grid_shows_every_image():
    images = np.stack([np.full((4, 4, 3), v, np.float32) for v in (-1, 0, 0.5)])
    png = captioned_png(images, ["black", "grey", "light " * 9], columns=2)
    shades = set(np.asarray(Image.open(io.BytesIO(png)).convert("L")).ravel().tolist())
    assert {0, 128, 191} <= shades
    assert png == captioned_png(images, ["black", "grey", "light " * 9], columns=2)


def test_captions_are_below_their_images_whole():
    """Of a long caption every line has ink below the image, and none is on it or cut off."""
    images = np.zeros((2, 4, 4, 3), np.float32)
    png = captioned_png(images, ["a", "a long caption " * 14], columns=8)
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(int)
    bottom = np.flatnonzero((picture == 128).sum(axis=1) > 100).max()
    left, right = picture[:, : picture.shape[1] // 2], picture[:, picture.shape[1] // 2 :]
    for half, lines in ((left, 1), (right, 9)):
        area = half[:bottom, 25:-25]
        assert set(area[20:].ravel().tolist()) == {128}  # nothing is written on the image
        ink = (half[bottom + 1 :] < 120).any(axis=1)
        assert np.count_nonzero(np.diff(ink.astype(int)) == 1) >= lines
        assert not ink[-5:].any()
